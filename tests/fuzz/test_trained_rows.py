"""What is trained is what the row says: tokens and loss of random rows in every format, decoded.

Each kind makes a row as its file has it and, by itself, the texts that follow from it: what is
before the loss, and what has loss. Special tokens stand in these texts by name.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipes import dpo, kto, ppo, reward, sft
from recipes.lib.data.loading import load_splits
from recipes.lib.data.streaming import load_rows
from recipes.lib.recipe import spine
from recipes.lib.recipe.main import parse
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import FAST, write

Turns = list[dict[str, Any]]
ROLES = ["<system>", "<user>", "<assistant>"]
TEMPLATE = (
    "{{ bos_token or '' }}{% for turn in messages %}<{{ turn.role }}>{% if turn.role == "
    "'assistant' %}{% generation %}{{ turn.content }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ turn.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = "the cat sat on a red book . , and then she said : no ! Once upon time".split()
ODD = ["\u732b", "caf\u00e9", "\U0001f600", "a\u0301", "\t", "\n\n", "  ", '"', "\\", "{x}", "0.5"]
ODD += ["\u2028", "\u00a0", "'s", "<b>", "&amp;", "\u0645\u0631", "<assistant", "]", "#1"]
NUM_ROWS = 12


class Says(NamedTuple):
    """What one sequence of a row has to be: text before the loss, and text with loss."""

    before: str
    learned: str
    answers: list[bool] | None = None  # the turns that are learned, where they are not at the end


class Draw:
    """Random texts and conversations; what a tokenizer has around them is written out."""

    def __init__(self, seed: int, bos: str, eos: str, odd: bool) -> None:
        self.random, self.bos, self.eos = random.Random(seed), bos, eos
        self.words = WORDS + ODD * odd
        self.is_odd = odd

    def text(self) -> str:
        count = self.random.randint(1, 9)
        said = "".join(
            self.random.choice(["", " ", " ", " ", "\n"] if self.is_odd else [" "]) + word
            for word in self.random.choices(self.words, k=count)
        )
        return (said if self.is_odd else said.strip()) if said.strip() else "so"

    def begun(self) -> str:
        """A text that perhaps has a BOS already, which is to be there once."""
        return self.random.choice(["", self.bos]) + self.text()

    def other(self, text: str) -> str:
        return next(made for made in iter(self.text, None) if made != text)

    def ended(self, text: str) -> str:
        return text if text.endswith(self.eos) else text + self.eos

    def turns(self, least: int = 1) -> Turns:
        """A system's turn perhaps, and questions with answers, the last one open."""
        made = [{"role": "system", "content": self.text()}] * self.random.choice([0, 1])
        for _ in range(self.random.randint(least, 2) - 1):
            made += [said("user", self.text()), said("assistant", self.text())]
        return [*made, said("user", self.text())]

    def rendered(self, turns: Turns) -> str:
        ends = {"assistant": self.eos}
        return self.bos + "".join(
            f"<{turn['role']}>{turn['content']}{ends.get(turn['role'], '')}" for turn in turns
        )

    def asked(self, turns: Turns) -> str:
        return self.rendered(turns) + "<assistant>"

    def answer(self, turns: Turns, text: str) -> Says:
        return Says(self.asked(turns), text + self.eos)

    def plain(self, prompt: str, completion: str) -> Says:
        return Says(self.bos + prompt.removeprefix(self.bos), self.ended(completion))


Made = tuple[dict[str, Any], list[Says]]


def common(one: Any, other: Any) -> int:
    """How long two texts or lists are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def text(draw: Draw) -> Made:
    row = draw.begun()
    written = row + draw.random.choice(["", draw.eos])  # one end, whether it is written or not
    return {"text": written}, [Says("", draw.bos + row.removeprefix(draw.bos) + draw.eos)]


def messages(draw: Draw) -> Made:
    turns = [*draw.turns(), said("assistant", draw.text())]
    return {"messages": turns}, [Says("", draw.rendered(turns))]


def answers_alone(draw: Draw) -> Made:
    row, _ = messages(draw)
    whole = draw.rendered(row["messages"])
    return row, [Says("", whole, [turn["role"] == "assistant" for turn in row["messages"]])]


def completion(draw: Draw) -> Made:
    prompt, answer = draw.begun(), draw.text()
    written = answer + draw.random.choice(["", draw.eos])
    return {"prompt": prompt, "completion": written}, [draw.plain(prompt, answer)]


def chat_completion(draw: Draw) -> Made:
    turns, answer = draw.turns(), draw.text()
    return {"prompt": turns, "completion": [said("assistant", answer)]}, [
        draw.answer(turns, answer)
    ]


def alpaca(draw: Draw) -> Made:
    system, question, given, old, new = (draw.text() for _ in range(5))
    row: dict[str, Any] = {"instruction": question, "output": new}
    turns = [said("user", question)]
    if draw.random.random() < 0.5:
        row["input"] = given
        turns = [said("user", f"{question}\n{given}")]
    if draw.random.random() < 0.5:
        row["history"] = [[given, old]]
        turns = [said("user", given), said("assistant", old), *turns]
    if draw.random.random() < 0.5:
        row["system"] = system
        turns = [said("system", system), *turns]
    return row, [draw.answer(turns, new)]


def as_sharegpt(turns: Turns) -> Turns:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def sharegpt(draw: Draw) -> Made:
    row, says = messages(draw)
    return {"conversations": as_sharegpt(row["messages"])}, says


def pair(draw: Draw) -> Made:
    prompt, good = draw.begun(), draw.text()
    bad = draw.other(good)
    says = [draw.plain(prompt, side) for side in (good, bad)]
    return {"prompt": prompt, "chosen": good, "rejected": bad}, says


def implicit_pair(draw: Draw) -> Made:
    start, good = draw.text(), draw.text()
    sides = [start + good, start + draw.other(good)]
    prompt = sides[0][: common(*sides)]
    if prompt.endswith(" ") or prompt in sides:  # whose end is the completions'
        return implicit_pair(draw)
    says = [draw.plain(prompt, side.removeprefix(prompt)) for side in sides]
    return dict(zip(("chosen", "rejected"), sides, strict=True)), says


def chat_pair(draw: Draw) -> Made:
    turns, good = draw.turns(), draw.text()
    sides = {"chosen": good, "rejected": draw.other(good)}
    row = {name: [said("assistant", side)] for name, side in sides.items()}
    return {"prompt": turns} | row, [draw.answer(turns, side) for side in sides.values()]


def whole_chat_pair(draw: Draw) -> Made:
    row, says = chat_pair(draw)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}, says


def alpaca_pair(draw: Draw) -> Made:
    question, good = draw.text(), draw.text()
    bad = draw.other(good)
    says = [draw.answer([said("user", question)], side) for side in (good, bad)]
    return {"instruction": question, "chosen": good, "rejected": bad}, says


def sharegpt_pair(draw: Draw) -> Made:
    row, says = chat_pair(draw)
    sides = {side: as_sharegpt(row[side])[0] for side in ("chosen", "rejected")}
    return {"conversations": as_sharegpt(row["prompt"])} | sides, says


def hh_pair(draw: Draw) -> Made:
    turns, good = draw.turns(), draw.text().strip()
    turns = [
        turn | {"content": turn["content"].strip()} for turn in turns if turn["role"] != "system"
    ]
    sides = {"chosen": good, "rejected": draw.other(good).strip()}
    if good == sides["rejected"]:
        return hh_pair(draw)
    names = {"user": "Human", "assistant": "Assistant"}
    start = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)
    row = {name: f"{start}\n\nAssistant: {side}" for name, side in sides.items()}
    return row, [draw.answer(turns, side) for side in sides.values()]


def liked(make: Callable[[Draw], Made], name: str = "label") -> Callable[[Draw], Made]:
    def made(draw: Draw) -> Made:
        row, says = make(draw)
        return row | {name: draw.random.random() < 0.5}, says

    return made


def liked_messages(draw: Draw) -> Made:
    row, says = liked(chat_completion)(draw)
    return {"messages": row["prompt"] + row["completion"], "label": row["label"]}, says


def liked_sharegpt(draw: Draw) -> Made:
    row, says = liked_messages(draw)
    return {"conversations": as_sharegpt(row["messages"]), "kto_tag": row["label"]}, says


def prompt(draw: Draw) -> Made:
    row = draw.begun()
    return {"prompt": row}, [Says(draw.bos + row.removeprefix(draw.bos), "")]


def chat_prompt(draw: Draw) -> Made:
    turns = draw.turns()
    return {"prompt": turns}, [Says(draw.asked(turns), "")]


ALPACA, SHAREGPT = {"dataset_format": "alpaca"}, {"dataset_format": "sharegpt"}
PAIRS: dict[str, tuple[Callable[[Draw], Made], dict[str, Any]]] = {
    "text": (pair, {}),
    "messages": (chat_pair, {}),
    "implicit text": (implicit_pair, {}),
    "implicit messages": (whole_chat_pair, {}),
    "alpaca": (alpaca_pair, ALPACA),
    "sharegpt": (sharegpt_pair, SHAREGPT),
    "hh": (hh_pair, {"dataset_format": "hh"}),
}
KINDS: dict[tuple[str, str], tuple[Callable[[Draw], Made], dict[str, Any]]] = {
    ("sft", "text"): (text, {}),
    ("sft", "messages"): (messages, {}),
    ("sft", "answers alone"): (answers_alone, {"assistant_only_loss": True}),
    ("sft", "completion"): (completion, {}),
    ("sft", "chat completion"): (chat_completion, {}),
    ("sft", "alpaca"): (alpaca, ALPACA),
    ("sft", "sharegpt"): (sharegpt, SHAREGPT),
    **{(recipe, name): kind for recipe in ("dpo", "reward", "kto") for name, kind in PAIRS.items()},
    ("kto", "liked"): (liked(completion), {}),
    ("kto", "liked chat"): (liked(chat_completion), {}),
    ("kto", "liked messages"): (liked_messages, {}),
    ("kto", "liked alpaca"): (liked(alpaca, "kto_tag"), ALPACA),
    ("kto", "liked sharegpt"): (liked_sharegpt, SHAREGPT),
    ("ppo", "prompt"): (prompt, {}),
    ("ppo", "chat prompt"): (chat_prompt, {}),
}


OWN: dict[str, dict[str, Any]] = {
    "ppo": {
        "reward_funcs": ["math:fsum"],
        "rollout_batch_size": 2,
        "num_mini_batches": 1,
        "per_device_train_batch_size": 1,
        "total_episodes": 2,
    },
}


def byte_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """Bytes with merges of common words, special tokens for roles; nothing is lost in it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", *ROLES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([" ".join(WORDS + ODD)] * 3, trainer)
    own: dict[str, str] = {"bos_token": "<bos>"} if bos else {}
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=ROLES,
        **own,
    )


def trained(recipe: str, values: dict[str, Any]) -> list[tuple[Any, list[int], list[bool]]]:
    """Every sequence as the model gets it, with its loss; of KTO with its label in front."""
    config = parse(recipe, [], FAST | values)
    script, training = config.script, config.training
    if recipe == "ppo":
        train, _ = load_splits(script, 0, ("prompt",))
        prompts = ppo.make_trainer(config, train, None).collector.prompts
        return [(None, ids, [False] * len(ids)) for ids in prompts.ids]
    if recipe == "sft":
        rows = sft.load_text_rows(script, training)
        made = sft.make_trainer(config, sft.checked_tokenizer(config, rows.known), rows)
    elif recipe == "reward":
        made = reward.make_trainer(config, load_rows(script, training, lambda _: dpo.SIDES))
    elif recipe == "dpo":
        from trl import DPOTrainer

        rows = load_rows(script, training, lambda _: dpo.SIDES)
        made = spine.make_preference_trainer(DPOTrainer, config, rows)
    else:
        from trl import KTOTrainer

        made = spine.make_preference_trainer(KTOTrainer, config, kto.load_unpaired(script, 0))
    found = []
    for row in made.train_dataset:
        batch = made.data_collator([row])
        for number in range(1 if recipe == "kto" else len(batch["input_ids"])):
            seen = batch["attention_mask"][number].bool()
            ids = batch["input_ids"][number][seen].tolist()
            loss = [True] * len(ids)
            if "labels" in batch:
                assert all(
                    label in (-100, one)
                    for label, one in zip(batch["labels"][number][seen].tolist(), ids, strict=True)
                )
                loss = (batch["labels"][number] != -100)[seen].tolist()
            elif "completion_mask" in batch:
                loss = batch["completion_mask"][number].bool()[seen].tolist()
            found.append((row.get("label"), ids, loss))
    return found


def expected(
    recipe: str, tokenizer: Any, says: list[Says], row: dict[str, Any]
) -> list[tuple[Any, list[int], list[bool]]]:
    """The sequences of a row by the tokenizer alone."""

    def encode(text: str) -> list[int]:
        bos = tokenizer.bos_token
        if bos and text.startswith(bos):  # behind which some tokenizers put no space
            return [tokenizer.bos_token_id, *encode(text.removeprefix(bos))]
        return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    found, starts = [], []
    for one in says:
        before, ids = encode(one.before), encode(one.before + one.learned)
        # Where a merge spans the end of a prompt of text, SFT keeps the prompt's own tokens.
        is_apart = recipe == "sft" and isinstance(row.get("prompt"), str)
        apart = before + encode(one.learned)
        # But for tokenizers that put a space before every text, where it would be one too many.
        if is_apart and tokenizer.decode(apart) == tokenizer.decode(ids):
            ids = apart
        start = common(before, ids)
        found.append(ids)
        starts.append(start)
    if recipe == "dpo":
        starts = [min(starts)] * len(starts)
    label = row.get("label", row.get("kto_tag")) if recipe == "kto" else None
    labels = [True, False] if recipe == "kto" and len(says) == 2 else [label] * len(says)
    losses = [
        [place >= start for place in range(len(ids))]
        for ids, start in zip(found, starts, strict=True)
    ]
    if recipe == "reward":
        losses = [[True] * len(ids) for ids in found]
    if recipe == "ppo":
        losses = [[False] * len(ids) for ids in found]
    if says[0].answers is not None:
        losses = [in_pieces(tokenizer, found[0], says[0].answers)]
    return list(zip(labels, found, losses, strict=True))


def in_pieces(tokenizer: Any, ids: list[int], answers: list[bool]) -> list[bool]:
    """Loss by turn: a turn begins at the token of its role, which itself has no loss."""
    roles, turn, losses = tokenizer.convert_tokens_to_ids(ROLES), -1, []
    for token in ids:
        turn += token in roles
        losses.append(token not in roles and turn >= 0 and answers[turn])
    return losses


def compare(
    recipe: str, kind: str, tokenizer: Any, folder: Path, seed: int, *, is_odd: bool
) -> None:
    """Make random rows, train on none of them, and compare what would be."""
    tokenizer.chat_template = TEMPLATE
    sizes = {"max_position_embeddings": 512, "eos_token_id": tokenizer.eos_token_id}
    save_model(folder / "model", tokenizer, **sizes)
    make, values = KINDS[recipe, kind]
    has_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    draw = Draw(seed, tokenizer.bos_token if has_bos else "", tokenizer.eos_token, is_odd)
    made = {json.dumps(row): (row, says) for row, says in (make(draw) for _ in range(NUM_ROWS))}
    write(folder / "rows.jsonl", [row for row, _ in made.values()])
    own = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "run"),
    }
    found = trained(recipe, own | OWN.get(recipe, {"max_length": 400}) | values)
    wanted = [one for row, says in made.values() for one in expected(recipe, tokenizer, says, row)]
    in_order = sorted if recipe == "kto" else list  # whose rows are shuffled
    assert in_order(found) == in_order(wanted)
    texts = [one.before + one.learned for _, says in made.values() for one in says]
    whole = [tokenizer.decode(ids) for _, ids, _ in found]
    if is_odd:  # to the byte
        assert sorted(whole) == sorted(texts)
    else:  # up to the spaces that such a tokenizer puts before words
        assert sorted("".join(one.split()) for one in whole) == sorted(
            "".join(one.split()) for one in texts
        )


EVERY = [pytest.param(*key, id=" ".join(key)) for key in KINDS]
TEXTS = [("sft", "text"), ("sft", "completion"), ("dpo", "text"), ("kto", "liked")]
TEXTS += [("reward", "text"), ("ppo", "prompt")]


def compare_bytes(recipe: str, kind: str, folder: Path, seed: int) -> None:
    number = list(KINDS).index((recipe, kind)) + seed
    compare(recipe, kind, byte_tokenizer(bos=number % 2 == 1), folder, number, is_odd=True)


@pytest.mark.parametrize(("recipe", "kind"), EVERY)
def test_what_is_trained_is_what_the_row_says(recipe: str, kind: str, tmp_path: Path) -> None:
    compare_bytes(recipe, kind, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("recipe", "kind"), EVERY)
def test_what_is_trained_is_what_more_rows_say(
    recipe: str, kind: str, seed: int, tmp_path: Path
) -> None:
    compare_bytes(recipe, kind, tmp_path, seed)


@pytest.mark.parametrize("name", ["stories260K", "TinyStories-656K"])
@pytest.mark.parametrize(
    ("recipe", "kind"), [pytest.param(*key, id=" ".join(key)) for key in TEXTS]
)
def test_so_it_is_with_tokenizers_of_real_models(
    recipe: str, kind: str, name: str, shared: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    compare(recipe, kind, tokenizer, tmp_path, 3, is_odd=False)
