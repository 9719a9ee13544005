"""Who is examined: a saved reward model, its run, and pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recipes.lib.data.answers import BESIDE_ANSWERS, answer_columns, ordered_pairs
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import BESIDE, load_splits
from recipes.lib.data.prompts import context_length
from recipes.lib.data.reading import ANSWER_FILES
from recipes.lib.doctor.findings import NotCheckedError
from recipes.lib.doctor.statistics import Array
from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import BASE_QUANTIZATION
from recipes.lib.models.folders import is_adapter, resolve_model
from recipes.lib.runs.settings import run_of, settings_of

if TYPE_CHECKING:
    from datasets import Dataset

    from recipes.lib.rewards.reward_models import RewardModel

NUM_PAIRS = 256  # of which each score is asked
NUM_TEXTS = 32  # of which the dearer checks ask several scores each
PADDING = 5  # tokens
MOST_BYTES = 2**31  # of a model that is loaded a second time
# What a model is asked without data of its own.
ASKED = ("How are you today?", "Tell me about the sea.", "What is a good gift?", "Sum it up.")
SAID = (
    "I am well, thank you. How are you?",
    "The sea is wide and blue. Many fish live in it, and ships sail on it.",
    "No.",
    "A book, perhaps, or a walk together on a day in spring when nobody has to hurry home.",
)


@dataclass(kw_only=True)
class AnswerRows(DataArguments):
    """The keys of data, read as `rlhf reward` reads them."""

    FEEDBACK: ClassVar[tuple[str, ...]] = ANSWER_FILES


@dataclass
class Subject:
    """A reward model and what is known of it.

    Args:
        path: Folder of the saved model, or its Hub id.
        scorer: The model, asked as PPO asks it.
        train: Training rows with chosen and rejected; None where they are gone.
        test: Rows that it was not trained on; None where they are gone.
        absent: Why there are no rows.
        trusted: Whether code beside the model may run.
        is_own: Whether the training rows are those that it was trained on.
    """

    path: str
    scorer: RewardModel
    train: Dataset | None = None
    test: Dataset | None = None
    absent: str = "there are no pairs to ask it about; name some with --dataset_name"
    trusted: bool = False
    is_own: bool = True

    @property
    def run(self) -> Path | None:
        """The run that the model comes from."""
        return run_of(self.path)

    @cached_property
    def places(self) -> list[int]:
        """Which test rows are asked about, from all over them."""
        if not self.test:
            raise NotCheckedError(self.absent)
        return spread(len(self.test))

    @cached_property
    def pairs(self) -> list[tuple[Any, Any, Any]]:
        """Prompt, chosen and rejected of each pair that is asked about."""
        return [split_pair(self.test[place]) for place in self.places]  # type: ignore[index]

    def side(self, number: int) -> tuple[list[Any], list[Any]]:
        """Prompts, and all chosen (1) or all rejected (2)."""
        return [pair[0] for pair in self.pairs], [pair[number] for pair in self.pairs]

    @cached_property
    def sums(self) -> tuple[Array, Array]:
        """Scores of chosen and rejected, of several aspects their sum."""
        return self.ask(*self.side(1)), self.ask(*self.side(2))

    @cached_property
    def scores(self) -> tuple[Array, Array]:
        """Scores of chosen and rejected in the aspect that they were compared in."""
        from recipes.lib.evaluation.pair_scores import scores_of

        if len(self.scorer.heads.aspects) == 1:
            return self.sums
        assert self.test is not None  # it has places
        chosen, rejected = zip(*scores_of(self.scorer, self.test.select(self.places)), strict=True)
        return np.array(chosen), np.array(rejected)

    @property
    def margins(self) -> Array:
        """Scores of chosen less those of rejected."""
        return self.scores[0] - self.scores[1]

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the scores, the unit in which they are compared."""
        found = np.concatenate(self.sums) if self.test else self.ask(*self.rows())
        return float(found.std()) or 1.0

    @cached_property
    def ids(self) -> list[list[int]]:
        """Tokens of some texts, with room for padding in the context."""
        room = (self.context or 2**30) - PADDING
        return [row[-room:] for row in self.token_ids(*self.rows(NUM_TEXTS))]

    @cached_property
    def alone(self) -> Array:
        """Scores of these texts without padding."""
        return self.padded()

    def padded(self, left: int = 0, right: int = 0, model: Any = None) -> Array:
        """Their scores between so many tokens of padding, which the mask tells.

        Args:
            left: Tokens before each text.
            right: Tokens behind it.
            model: A changed copy of the model, where that is asked.
        """
        import torch

        model, scores = model or self.scorer.model, np.zeros(len(self.ids))
        pad, device = model.config.get_text_config().pad_token_id, next(model.parameters()).device
        for length in {*map(len, self.ids)}:  # so that nothing else is padded
            same = [place for place, row in enumerate(self.ids) if len(row) == length]
            rows = [[pad] * left + self.ids[place] + [pad] * right for place in same]
            ids = torch.tensor(rows, device=device)
            mask = torch.zeros_like(ids)
            mask[:, left : left + length] = 1
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits
            scores[same] = logits.float().sum(-1).tolist()
        return scores

    @property
    def is_rounded(self) -> bool:
        """Whether it is an adapter whose base was rounded in training."""
        return (Path(self.path) / BASE_QUANTIZATION).is_file()

    @cached_property
    def by_others(self) -> tuple[Any, Any]:
        """Model and tokenizer as transformers or PEFT load them by themselves."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.refuse_large()
        own: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": self.trusted}
        if is_adapter(self.path):
            from peft import AutoPeftModelForSequenceClassification as Loader

            if self.is_rounded:
                raise NotCheckedError("its base was rounded, which PEFT alone leaves out")
            outputs = len(self.scorer.heads.names())
            model = Loader.from_pretrained(self.path, num_labels=outputs, **own)
            tokenizer = self.scorer.tokenizer  # an adapter may have its base's
            model.config.pad_token_id = tokenizer.pad_token_id  # a base knows of none
        else:
            own |= {"use_safetensors": True}  # other formats can run code
            model = AutoModelForSequenceClassification.from_pretrained(self.path, **own)
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trusted)
        return model.eval().to(next(self.scorer.model.parameters()).device), tokenizer

    def in_format(self, dtype: str, *, is_whole: bool) -> Subject:
        """The same model loaded in another number format.

        Args:
            dtype: The format.
            is_whole: Whether adapters and heads are in it, too.
        """
        import torch

        from recipes.lib.models.classifiers import load_reward_model
        from recipes.lib.rewards.reward_models import RewardModel

        self.refuse_large()
        model, tokenizer = load_reward_model(self.path, dtype, trust_remote_code=self.trusted)
        if getattr(model, "is_quantized", False):
            raise NotCheckedError("its weights are rounded in its files")
        if is_whole:
            for weight in model.parameters():  # buffers, as those of positions, stay finer
                weight.data = weight.data.to(getattr(torch, dtype))
        model.to(next(self.scorer.model.parameters()).device)
        scorer = RewardModel(model, tokenizer, self.scorer.__name__, self.scorer.batch_size)
        return replace(self, scorer=scorer)

    def refuse_large(self) -> None:
        """Leave out what would take a second copy of a large model."""
        if sum(w.numel() * w.element_size() for w in self.scorer.model.parameters()) > MOST_BYTES:
            raise NotCheckedError("the model is too large to be in memory a second time")

    def ask(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Array:
        """Scores as PPO gets them."""
        return np.array(self.scorer(prompts, completions))

    @property
    def context(self) -> int | None:
        """Most tokens that the model reads; None where it does not say."""
        return context_length(self.scorer.model.config)

    def ask_fitting(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Array:
        """Scores of completions whose words were changed, if they still fit the context."""
        ids = self.token_ids(prompts, completions)
        longest = max(map(len, ids))
        if longest > (self.context or longest):
            raise NotCheckedError("its texts do not fit the context when they are made longer")
        return self.scorer.score_tokens(ids).sum(-1).numpy()

    def rows(self, number: int = NUM_TEXTS) -> tuple[list[Any], list[Any]]:
        """Prompts and completions, chosen and rejected in turn; made-up ones without data."""
        if not self.test:
            turns = bool(self.scorer.tokenizer.chat_template)
            asked = [[{"role": "user", "content": text}] if turns else text + " " for text in ASKED]
            said = [[{"role": "assistant", "content": text}] if turns else text for text in SAID]
            return [p for p in asked for _ in said], [c for _ in asked for c in said]
        turned = [pair[0::2] if n % 2 else pair[:2] for n, pair in enumerate(self.pairs[:number])]
        return [row[0] for row in turned], [row[1] for row in turned]

    def token_ids(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """What the model reads, as the scorer makes it."""
        texts = self.scorer.texts(prompts, completions)
        plain = isinstance(prompts[0], str)
        ids: list[list[int]] = self.scorer.tokenizer(texts, add_special_tokens=plain)["input_ids"]
        return ids


def spread(number: int) -> list[int]:
    """Places of at most NUM_PAIRS rows from all over so many."""
    step = max(1, number / NUM_PAIRS)
    return [int(place * step) for place in range(min(NUM_PAIRS, number))]


def split_pair(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected; of messages without a prompt, what both sides begin with."""
    if row.get("prompt"):
        return row["prompt"], row["chosen"], row["rejected"]
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        return "", chosen, rejected
    turns = range(min(len(chosen), len(rejected)) - 1)
    same = next((turn for turn in turns if chosen[turn] != rejected[turn]), len(turns))
    return chosen[:same], chosen[same:], rejected[same:]


def edited(said: Any, edit: Callable[[str], str]) -> Any:
    """A completion, text or messages, with its last words changed."""
    if isinstance(said, str):
        return edit(said)
    return [*said[:-1], said[-1] | {"content": edit(str(said[-1].get("content") or ""))}]


def examine(
    name: str,
    rows: tuple[Any, Any] | None = None,
    size: int = 32,
    *,
    trusted: bool = False,
    is_own: bool = True,
) -> Subject:
    """Load a saved reward model as PPO does, and the rows of its run.

    Args:
        name: Run, folder or Hub id.
        rows: Training and test rows; None for those that the run's configuration names.
        size: Texts at a time.
        trusted: Whether code beside the model may run.
        is_own: Whether these are the rows of its training.

    Returns:
        The subject.

    Raises:
        UserError: It cannot be loaded.
    """
    from recipes.lib.models.classifiers import load_reward_model
    from recipes.lib.models.policies import placed
    from recipes.lib.rewards.reward_models import RewardModel

    path = resolve_model(name)
    model, tokenizer = load_reward_model(path, trust_remote_code=trusted)
    subject = Subject(path, RewardModel(placed(model), tokenizer, name, size), trusted=trusted)
    if rows is not None:
        (subject.train, subject.test), subject.is_own = rows, is_own
        return subject
    known = {key.name for key in fields(AnswerRows) if key.init}
    settings = settings_of(subject.run)
    args = AnswerRows(**{key: value for key, value in settings.items() if key in known})
    if not (args.dataset_name or args.datasets):
        return subject
    try:
        subject.train, subject.test = pairs_of(args, int(settings.get("seed", 42)))
    except UserError as error:
        subject.absent = f"the run's pairs cannot be read ({str(error).rstrip('.')})"
    return subject


def pairs_of(args: AnswerRows, seed: int) -> tuple[Any, Any]:
    """Pairs that training and test answers imply, split as `rlhf reward` splits them."""
    args.reads_answers = True
    rows = load_splits(args, seed, answer_columns, (*BESIDE, *BESIDE_ANSWERS))
    train, test = (None if some is None else ordered_pairs(some) for some in rows)
    return train, test
