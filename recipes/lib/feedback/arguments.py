"""The keys of `rlhf feedback` beside those of the simulated rater."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.lib.config.fields import option
from recipes.lib.data.arguments import DataArguments
from recipes.lib.feedback.rows import KINDS
from recipes.lib.models.folders import TrustArguments

FORMATS = ("trl", "argilla", "label-studio", "csv", "parquet")
NAMES = {"share", "revoke", "annotator"}  # keys that no file keeps: people may be forgotten
PAGE = {"host", "port", "open_browser"}  # keys that say where the page is, and nothing of answers
STRATEGIES = ("random", "disagreement", "closest", "widest", "diversity")


@dataclass(kw_only=True)
class ServeArguments:
    """What is asked, and of whom."""

    items: str | None = option(
        None, "Ready items instead of prompts: {prompt, completions, kind, gold} a line."
    )
    kinds: list[str] = option(lambda: ["pair"], f"Kinds of answers, in turns: {', '.join(KINDS)}.")
    num_completions: int = option(4, "Completions of a ranking.")
    aspects: list[str] = option(lambda: ["overall"], "What is rated from 1 to 5.")
    overlap: float = option(0.0, "Share of items that two people answer.")
    repeat: float = option(0.0, "Share of items that come a second time.")
    num_answers: int | None = option(None, "Answers after which it ends by itself.")
    annotator: str | None = option(None, "Who answers on this machine; default the user's name.")
    share: list[str] = option(
        list, "Names of people who answer from elsewhere; each gets a secret link."
    )
    revoke: list[str] = option(list, "Names of people whose links end.")
    chat: bool = option(False, "A chat with the runs instead of items.")
    compare_every: int = option(4, "Turns of a chat after which two replies are compared; 0 never.")
    implicit: bool = option(
        True, "Keep what people do in a chat (keep, copy, ask again), with weight 0."
    )
    host: str | None = option(
        None, "Address to listen on; default this machine alone, with share all of its networks."
    )
    port: int = option(8770, "Port to listen on; 0 takes a free one.")
    open_browser: bool = option(True, "Open the page in a browser.")


@dataclass(kw_only=True)
class ExchangeArguments:
    """Where answers are kept, and files of elsewhere."""

    database: str | None = option(
        None,
        "URL of a database, such as postgresql://host/name, instead of a file in the project's "
        "folder; kept with the project.",
    )
    implicit_weight: float = option(
        0.0, "Weight in training of what people merely did in a chat; export leaves it out at 0."
    )
    format: str = option("trl", "What files hold.", choices=FORMATS)
    mapping: str | None = option(
        None, "Makes feedback rows of a record of any other file: file.py:function."
    )


@dataclass(kw_only=True)
class SelectArguments:
    """Which of many completions are asked about."""

    strategy: str = option(
        "random",
        "Which pairs: random; those on which the outputs of an ensemble disagree; with the closest "
        "or the widest scores; diversity on the model's hidden states.",
        choices=STRATEGIES,
    )
    num_items: int | None = option(None, "How many are asked.")
    candidates_per_item: int = option(
        4, "Prompts that are sampled for each item, of which one is chosen; 1 where that is random."
    )
    random_share: float = option(
        0.2, "Share of the items that is drawn at random and held out from training, 0.2 or more."
    )
    reward_model_name_or_path: str | None = option(
        None, "Reward model (run, folder or Hub id) whose scores the strategy reads."
    )
    asked: list[str] = option(
        list,
        "Selections of before, whose prompts are not asked again; but for `repeat` of the items, "
        "which show whether people still answer as they did.",
    )


@dataclass(kw_only=True)
class AskArguments(ServeArguments, DataArguments, TrustArguments):
    """What it takes to ask people; how what is asked is sampled is kept with the project."""

    temperature: float = option(1.0, "Sampling temperature.")
    max_completion_length: int = option(64, "Longest completion, in tokens.")
    seed: int = option(0, "Of sampling, rating and splitting.")
    names: list[str] = option(
        list, "Runs whose completions are judged (serve), files (import), annotators (forget)."
    )
