"""What `rlhf data` shows of KTO's rows and of a reward model's is what TRL's trainers make of them.

SFT and DPO are in tests/recipes/test_data_page.py.
"""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import sft
from recipes.lib.data.formats import format_of
from recipes.lib.data.lengths import limit_effects, row_length
from recipes.lib.data.streaming import Rows
from recipes.lib.data.tokenization import Tokens, tokenize_row
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.recipe.main import launch, parse
from tests.helpers.tiny_runs import FAST, write

USER = [{"role": "user", "content": "what sat on the tree ?"}]
GOOD = [{"role": "assistant", "content": "the happy bird sat ."}]
BAD = [{"role": "assistant", "content": "the cat"}]
LIMIT = 12
FULL = "the cat " * 6  # a prompt that fills the limit, to the token
TEXTS = [("the cat sat", " on the red book ."), (FULL, " is"), ("the cat", " the tree" * 6)]
TEXTS += [("the cat", "s sat on it")]  # whose tokens span the end of the prompt
LIKED: list[dict[str, Any]] = [
    {"prompt": prompt, "completion": text, "label": number % 2 == 0}
    for number, (prompt, text) in enumerate(TEXTS)
]
SPOKEN: list[dict[str, Any]] = [
    {"prompt": turns, "completion": answer, "label": answer is GOOD}
    for turns in (USER, USER + GOOD + USER)
    for answer in (GOOD, BAD)
]
PAIRS: list[dict[str, Any]] = [
    {"prompt": prompt, "chosen": text, "rejected": " ran"} for prompt, text in TEXTS
]
SPOKEN_PAIRS: list[dict[str, Any]] = [
    {"prompt": turns, "chosen": GOOD, "rejected": BAD} for turns in (USER, USER + GOOD + USER)
]
WHOLE_PAIRS: list[dict[str, Any]] = [
    {"chosen": turns + GOOD, "rejected": turns + BAD} for turns in (USER, USER + GOOD + USER)
]
Sequence = tuple[list[int], list[bool]]


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path


def ours(rows: list[dict[str, Any]], tokenizer: Any) -> tuple[list[list[Tokens]], list[str]]:
    """The sequences of each row, and what is said of a limit."""
    shape = format_of(Dataset.from_list(rows))
    found = [tokenize_row(row, shape, tokenizer) for row in rows]
    return found, limit_effects([row_length(one) for one in found], LIMIT, shape)


def kto(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], limit: int | None) -> Any:
    from trl import KTOConfig, KTOTrainer

    settings = FAST | {"report_to": "none", "per_device_train_batch_size": 2}
    return KTOTrainer(
        model=str(folder / "tiny"),
        args=KTOConfig(output_dir=str(folder / "run"), max_length=limit, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def collated(trainer: Any) -> list[Sequence]:
    """Tokens and loss of every row as the model gets them, sorted."""
    made = []
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        mask = batch["completion_mask"][0].bool().tolist()
        made.append((batch["input_ids"][0].tolist(), mask))
    return sorted(made)


def expected(found: list[list[Tokens]], limit: int | None) -> list[Sequence]:
    """The same from what `rlhf data` knows: each side as a row, cut or dropped."""
    made = []
    for seen in (side for row in found for side in row):
        has_loss = [place >= seen.start for place in range(len(seen.ids))]
        if limit is None or seen.start < limit:
            made.append((seen.ids[:limit], has_loss[:limit]))
    return sorted(made)


@pytest.mark.parametrize("limit", [None, LIMIT])
@pytest.mark.parametrize("rows", [LIKED, SPOKEN, PAIRS, SPOKEN_PAIRS, WHOLE_PAIRS])
def test_tokens_and_loss_are_those_of_trls_kto(
    rows: list[dict[str, Any]],
    limit: int | None,
    folder: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    trainer = kto(folder, tiny_tokenizer, rows, limit)
    found, told = ours(rows, tiny_tokenizer)
    assert collated(trainer) == expected(found, limit)
    if "label" in rows[0]:  # what is shown of a row is what KTO trains on
        shown = [(seen.ids[:limit], seen.has_loss[:limit]) for (seen,) in found]
        assert all(row in shown for row in collated(trainer))
    if limit is None:
        return
    num_rows = len(rows) * len(found[0])
    dropped = num_rows - len(trainer.train_dataset)
    cut = sum(
        len(row["prompt_ids"]) + len(row["completion_ids"]) > limit for row in trainer.train_dataset
    )
    assert cut > 0 or dropped > 0  # or the rows would show nothing
    what = "rows" if "label" in rows[0] else "of its rows"
    said = f"{cut} {what} are cut at {LIMIT} tokens"
    if dropped:
        said += f"; {dropped} are dropped, because their prompt alone fills it"
    assert said in [line.removeprefix("kto, which makes two rows of a pair: ") for line in told]


def test_kto_takes_each_side_of_a_pair_by_itself(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # By hand: the chosen text makes one word of "cat" and "s", so it begins after "the".
    row = PAIRS[3]
    ((chosen, rejected),), _ = ours([row], tiny_tokenizer)
    assert (chosen.start, rejected.start) == (1, 2)
    # DPO gives both the same prompt, and that is the mask which is shown.
    assert [seen.has_loss.index(True) for seen in (chosen, rejected)] == [1, 1]


@pytest.mark.parametrize("limit", [None, LIMIT])
@pytest.mark.parametrize("rows", [PAIRS, SPOKEN_PAIRS, WHOLE_PAIRS])
def test_tokens_and_dropped_rows_are_those_of_trls_reward_trainer(
    rows: list[dict[str, Any]],
    limit: int | None,
    folder: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from trl import RewardConfig, RewardTrainer

    kept = rows if limit is None else [*rows, {**rows[0], "chosen": rows[0]["rejected"]}]
    settings = FAST | {"report_to": "none", "max_length": limit}
    trainer = RewardTrainer(
        model=str(folder / "tiny"),
        args=RewardConfig(output_dir=str(folder / "run"), **settings),
        train_dataset=Dataset.from_list(kept),
        processing_class=tiny_tokenizer,
    )
    found, told = ours(kept, tiny_tokenizer)
    whole = [(chosen.ids, rejected.ids) for chosen, rejected in found]
    fitting = [pair for pair in whole if limit is None or max(map(len, pair)) <= limit]
    made = [(row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert made == fitting
    if limit is not None:
        dropped = len(kept) - len(made)
        assert dropped > 0
        assert f"reward: {dropped} rows are dropped as too long" in told


def test_the_page_says_what_each_trainer_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(folder / "rows.jsonl", PAIRS))
    argv = [path, "--model_name_or_path", str(folder / "tiny"), "--max_length", str(LIMIT)]
    assert launch("data", argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    # By hand, prompt and side with <eos>: 3+6 and 3+2; 12+2 twice; 2+13 and 2+2; 6 and 2+2.
    assert "dpo: 1 rows are cut at 12 tokens; 1 are dropped, because their prompt alone" in out
    assert "two rows of a pair: 1 of its rows are cut at 12 tokens; 2 are dropped, because" in out
    assert "reward: 2 rows are dropped as too long" in out


def test_tokens_that_span_the_end_of_a_prompt_are_shown_as_the_recipe_of_sft_trains_them(
    shared: Path, tmp_path: Path
) -> None:
    name = str(shared / "models" / "TinyStories-656K")
    tokenizer = load_tokenizer(name)
    row = {"prompt": "Once upon a time there was", "completion": " a little girl named Lily."}
    values = {"model_name_or_path": name, "dataset_name": "rows.jsonl", "max_steps": 1}
    config = parse("sft", [], FAST | values | {"output_dir": str(tmp_path / "run")})
    rows = Dataset.from_list([row])
    (theirs,) = sft.make_trainer(config, tokenizer, Rows(rows, None, rows)).train_dataset
    (seen,) = tokenize_row(row, format_of(rows), tokenizer)
    assert seen.ids == theirs["input_ids"]
    assert seen.has_loss == [label != -100 for label in theirs["labels"]]
    assert seen.ids[: seen.start] == tokenizer(row["prompt"])["input_ids"]
