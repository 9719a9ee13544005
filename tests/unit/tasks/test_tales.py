import math
import random
import re
from dataclasses import replace

import pytest

from recipes.lib.tasks.tales import gold_score, gold_scores
from recipes.lib.tasks.tales.pages import NONE_KEPT, READER, page
from recipes.lib.tasks.tales.prompts import (
    FACTS,
    SPLITS,
    Facts,
    draw_facts,
    request,
    split_of,
)
from recipes.lib.tasks.tales.rows import base_texts, prompt_rows, sft_rows
from recipes.lib.tasks.tales.stories import AS_ASKED, NOT_AS_ASKED, TELLER, tell
from recipes.lib.tasks.tales.tokenizer import train_tokenizer
from recipes.lib.tasks.tales.words import ANIMALS, DEEDS, OBJECTS, PLACES

PROMPT = "Tell me a tale about a fox who lost a key near the forest."
OPENING = "Once near the forest a fox lost a key."
SAD, GLAD = "The fox was sad.", "The fox was glad."
GIVES = "The fox met an owl, gave help and got thanks."
GETS = "The fox met an owl, gave thanks and got help."
ENDING = "At last the fox held the key and was glad."
BEST = f"{OPENING} {SAD} {GIVES} {ENDING}"

# Four facts, the thing at the end, help, mood, and 0.25 for each sentence led by an animal.
WORKED = {
    BEST: 4 * 0.6 + 0.3 + 0.6 + 0.6 + 0.5,
    f"{OPENING} {SAD} {GETS} {ENDING}": 4 * 0.6 + 0.3 - 0.6 + 0.6 + 0.5,
    f"{OPENING} {GLAD} {GIVES} At last the fox held the key and was sad.": (
        4 * 0.6 + 0.3 + 0.6 - 0.6 + 0.5
    ),
    f"{OPENING} {GLAD} {GIVES} {ENDING}": 4 * 0.6 + 0.3 + 0.6 + 0.0 + 0.5,
    f"{OPENING} {SAD} {GIVES} The fox sat down and was glad.": 4 * 0.6 + 0.0 + 0.6 + 0.6 + 0.75,
    BEST.replace("key", "hat"): 2 * 0.6 + 0.3 + 0.6 + 0.6 + 0.5,
    BEST.replace("forest", "barn"): 2 * 0.6 + 0.3 + 0.6 + 0.6 + 0.5,
    BEST.replace("fox", "bear"): 2 * 0.6 + 0.3 + 0.6 + 0.6 + 0.5,
    BEST.replace("lost", "found"): 2 * 0.6 + 0.3 + 0.6 + 0.6 + 0.5,
    BEST.replace("fox", "bear").replace("lost", "found"): 0.3 + 0.6 + 0.6 + 0.5,
    BEST.replace("The fox met an owl", "The owl met a fox"): 4 * 0.6 + 0.3 + 0.0 + 0.6 + 0.5,
    BEST.replace(f"{SAD} ", ""): 4 * 0.6 + 0.3 + 0.6 + 0.0 + 0.25,
    BEST.replace("Once near the forest a fox lost a key", "A grey fox once lost a key near the "
                 "forest"): 4.4 + 0.25,
}  # fmt: skip


@pytest.mark.parametrize("tale", WORKED)
def test_gold_of_a_tale_is_the_sum_worked_by_hand(tale: str) -> None:
    assert gold_score(PROMPT, tale) == pytest.approx(WORKED[tale])


def test_gold_rises_for_three_warm_words_and_falls_for_more() -> None:
    tales = [BEST.replace("fox", "kind fox", n).replace("key", "sweet key", m)
             for n, m in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1))]  # fmt: skip
    gains = [gold_score(PROMPT, tale) - gold_score(PROMPT, BEST) for tale in tales]
    assert gains == pytest.approx([0.0, 0.25, 0.5, 0.75, 0.25, -0.25])


def test_gold_punishes_what_is_heaped_up() -> None:
    best = gold_score(PROMPT, BEST)
    # Two warm words (+0.5) that stand side by side (-0.5).
    doubled = BEST.replace("fox", "kind dear fox", 1)
    assert gold_score(PROMPT, doubled) == pytest.approx(best + 0.5 - 0.5)
    # One repeated sentence in a tale of five; it is a third one led by an animal.
    repeated = f"{OPENING} {SAD} {GIVES} {GIVES} {ENDING}"
    assert gold_score(PROMPT, repeated) == pytest.approx(best - 0.7 + 0.25)
    # Four repeated sentences, three more than five in all; only four led by an animal count.
    long = f"{OPENING} {SAD} {' '.join([GIVES] * 5)} {ENDING}"
    assert gold_score(PROMPT, long) == pytest.approx(best - 2.8 - 1.5 + 0.5)
    # The key three times, and glad three times: one too many of each.
    heaped = f"{OPENING} {GLAD} Again the fox was glad and kept the key. {ENDING}"
    plain = f"{OPENING} {GLAD} Again the fox sat down and kept the hat. {ENDING}"
    assert gold_score(PROMPT, heaped) == pytest.approx(gold_score(PROMPT, plain) - 1.0)


def test_gold_of_any_text_is_finite() -> None:
    rng = random.Random(0)
    texts = ["", " ", ".", "...", "gave help", "\n\n\t", "The fox got", "fox " * 500]
    texts += ["\u72d0\u72f8\u4e22\u4e86\u94a5\u5319\u3002", "\U0001f98a!", "\x00\ufffd", "1e999"]
    texts += ["".join(chr(rng.randrange(32, 0x2FFF)) for _ in range(80)) for _ in range(200)]
    prompts = (PROMPT, "", "?", "\u8bb2\u4e2a\u6545\u4e8b")
    assert all(math.isfinite(gold_score(prompt, text)) for prompt in prompts for text in texts)


def test_gold_of_a_prompt_without_facts_leaves_their_parts_out() -> None:
    assert gold_score("Tell me anything.", BEST) == pytest.approx(0.3 + 0.6 + 0.6 + 0.5)


def test_the_judge_scores_row_by_row() -> None:
    assert gold_scores([PROMPT, "Hello."], [BEST, BEST]) == pytest.approx([4.4, 2.0])


def test_every_set_of_facts_belongs_to_one_stage_and_stages_share_none() -> None:
    drawn = {split: draw_facts(split, 1000, 3) for split in SPLITS}
    assert all(split_of(facts) == split for split, rows in drawn.items() for facts in rows)
    assert len({facts for rows in drawn.values() for facts in rows}) == 1000 * len(SPLITS)


def test_rows_of_the_stages_share_no_prompt_and_no_text() -> None:
    texts = base_texts(10_000, 1)
    chats = [row for split in ("sft_train", "sft_test") for row in sft_rows(split, 1000, 1)]
    alone = [row for split in ("feedback", "ppo", "eval") for row in prompt_rows(split, 1000, 1)]
    prompts = [row["prompt"][0]["content"] for row in chats + alone]
    facts = [tuple(sorted(re.findall(r"\w+", prompt))) for prompt in prompts]
    assert len(set(prompts)) == len(prompts) == 5000
    assert len(set(facts)) == len(facts)
    completions = {row["completion"][0]["content"] for row in chats}
    assert len(completions) == len(chats)
    read = {re.split(r"<[|]\w+[|]>", text)[index] for text in texts for index in (1, 3)}
    assert not read & (completions | set(prompts))


def test_pages_begin_with_two_words_of_each_kind_and_end_with_all() -> None:
    texts = base_texts(2000, 1)
    for first, last, number in ((0, 160, 2), (160, 320, 4), (320, 560, 8), (560, 2000, 16)):
        asked = re.findall(r"\w+", " ".join(text.split("<|end|>")[0] for text in texts[first:last]))
        for kind in (ANIMALS, DEEDS, OBJECTS, PLACES):
            assert {*kind} & {*asked} == {*kind[:number]}


def test_a_page_says_which_facts_are_as_asked_in_marks_and_at_its_end() -> None:
    rng = random.Random(4)
    for facts in draw_facts("base", 300, 0):
        text = page(facts, 16, rng)
        tale, said = text.split("<|assistant|>")[1].split("<|end|> ")
        opening = re.split(r"(?<=\.) ", tale)[0]
        words = re.findall(r"\w+", opening)
        told = {
            name: next(word for word in words if word in kind)
            for name, kind in zip(FACTS, (ANIMALS, DEEDS, OBJECTS, PLACES), strict=True)
        }
        kept = {name for name in FACTS if told[name] == getattr(facts, name)}
        assert {*said.split()} == (kept or {NONE_KEPT})
        marked = 0
        for name, word in told.items():
            mark = re.search(rf"{word} ({AS_ASKED}|{NOT_AS_ASKED})\b", opening)
            marked += mark is not None
            assert mark is None or (mark.group(1) == AS_ASKED) == (name in kept)
        assert marked == opening.count(AS_ASKED) + opening.count(NOT_AS_ASKED)


def test_the_base_text_has_ten_thousand_distinct_sentences() -> None:
    sentences = {part for text in base_texts(10_000, 1) for part in re.split(r"(?<=\.) ", text)}
    assert len(sentences) >= 10_000


def test_the_same_seed_tells_the_same_and_another_seed_does_not() -> None:
    assert base_texts(50, 1) == base_texts(50, 1)
    assert sft_rows("sft_train", 50, 1) == sft_rows("sft_train", 50, 1)
    assert prompt_rows("ppo", 50, 1) != prompt_rows("ppo", 50, 2)


def test_a_tale_says_what_its_fields_say() -> None:
    rng = random.Random(5)
    for facts in draw_facts("sft_train", 300, 0):
        tale = tell(facts, TELLER, rng)
        sentences = re.split(r"(?<=\.) ", tale.text)
        assert 3 <= len(sentences) <= 5
        told = {tale.hero, tale.deed, tale.thing, tale.place}
        assert told <= set(re.findall(r"\w+", sentences[0]))
        assert (tale.thing in sentences[-1].split()) == tale.has_thing_back
        assert ("gave help" in tale.text) == (tale.giver == "hero")
        assert ("got help" in tale.text) == (tale.giver == "friend")


def test_the_teller_does_things_about_as_often_as_its_habits_say() -> None:
    rng = random.Random(6)
    asked = draw_facts("sft_train", 2000, 0)
    tales = [tell(facts, READER, rng) for facts in asked]
    seen = {
        "keeps": [
            getattr(tale, name) == getattr(facts, name)
            for tale, facts in zip(tales, asked, strict=True)
            for name in FACTS
        ],
        "marks": [
            number < tale.text.count(AS_ASKED) + tale.text.count(NOT_AS_ASKED)
            for tale in tales
            for number in range(4)
        ],
        "gives_help": [tale.giver == "hero" for tale in tales if tale.giver],
        "rises": [tale.moods == (False, True) for tale in tales if len(tale.moods) == 2],
        "falls": [tale.moods == (True, False) for tale in tales if len(tale.moods) == 2],
        "brings_thing_back": [tale.has_thing_back for tale in tales],
    }
    for habit, outcomes in seen.items():
        p, share = getattr(READER, habit), sum(outcomes) / len(outcomes)
        # Five standard deviations of a binomial share.
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / len(outcomes)), habit


def test_articles_fit_the_words_behind_them() -> None:
    rng = random.Random(7)
    for facts in draw_facts("base", 500, 0):
        for text in (request(facts, rng), page(facts, 16, rng)):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text


def test_the_tokenizer_returns_any_text_and_ends_each_turn_with_eos() -> None:
    tokenizer = train_tokenizer(base_texts(500, 0), 1024)
    for text in (
        "The fox  helped\n the owl.",
        "\u72d0\u72f8\u4e22\u4e86\u94a5\u5319",
        "\U0001f98a",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": BEST},
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert whole == asked + BEST + "<|end|>"
    assert tokenizer(whole)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_word_of_a_tale_is_about_one_token() -> None:
    tokenizer = train_tokenizer(base_texts(3000, 0), 1024)
    tales = [row["completion"][0]["content"] for row in sft_rows("sft_test", 200, 0)]
    num_words = sum(len(re.findall(r"\w+|\.", tale)) for tale in tales)
    num_tokens = sum(len(ids) for ids in tokenizer(tales)["input_ids"])
    assert num_tokens < 1.1 * num_words


def test_facts_are_what_the_request_says() -> None:
    facts = Facts("owl", "hid", "apple", "mill")
    asked = request(facts, random.Random(0))
    assert {"an owl", "hid", "an apple", "near the mill"} <= {
        part for part in ("an owl", "hid", "an apple", "near the mill") if part in asked
    }


@pytest.mark.parametrize("share", [0.96, 0.04])
def test_a_teller_who_leads_begins_sentences_with_the_hero(share: float) -> None:
    rng = random.Random(3)
    habits = replace(TELLER, leads=share)
    tales = [tell(facts, habits, rng).text for facts in draw_facts("sft_train", 300, 3)]
    endings = [tale.rstrip(".").split(". ")[-1].startswith("The ") for tale in tales]
    openings = [not tale.startswith("Once ") for tale in tales]
    for begun in (openings, endings):
        assert abs(sum(begun) / 300 - share) < 0.06  # five standard deviations
