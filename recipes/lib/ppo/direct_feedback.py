"""Scores that people give to the policy's own completions, as rewards of those very episodes.

Of each rollout the first episodes are put into a feedback project, to be rated from 1 to 5 on the
page of `rlhf feedback serve`. A rating is brought to the units of the reward model, by mean and
spread of what both have scored, for each annotator; the reward model speaks for the other episodes,
and its score head learns from all ratings so far before the next rollout.

What a rollout took is written down before it is used: a run that is resumed takes the same again,
whatever people have said since.

Shapes: N ratings, H hidden size.

Source: Christiano et al., Deep Reinforcement Learning from Human Preferences, 2017 (feedback while
the policy learns); Bishop, Pattern Recognition and Machine Learning, 2006, equation 3.28 (ridge).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.lib.errors import UserError, note
from recipes.lib.feedback.rows import current, item_id
from recipes.lib.models.forward import length_batches
from recipes.lib.ppo.rollouts import Episode
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.rewards.scoring import RewardFunction, as_answers
from recipes.lib.runs.files import read_jsonl, write_jsonl

LOG = "direct_feedback.jsonl"  # in the run folder: what each rollout took
PAUSE = 0.3  # seconds between looks at the answers
Table = NDArray[np.float64]


class DirectFeedback:
    """The people who rate some episodes of every rollout.

    Args:
        trainer: The PPOTrainer.
        functions: The rewards: one reward model of one output.

    Raises:
        UserError: It is not that one, there is an environment or are several processes, or the
            project cannot be opened.
    """

    def __init__(self, trainer: Any, functions: Sequence[RewardFunction]) -> None:
        args = trainer.args
        if trainer.worlds is not None:
            raise UserError(
                f"feedback={args.feedback}: a rating is of one completion, and with an environment "
                "or tools there are several turns; leave one of them out."
            )
        reward = functions[0] if len(functions) == 1 else None
        if not isinstance(reward, RewardModel) or len(reward.heads.names()) > 1:
            raise UserError(
                f"feedback={args.feedback}: wants one reward model of one output as reward_funcs, "
                "which speaks where nobody does; name that alone."
            )
        if args.world_size > 1:
            raise UserError(
                f"feedback={args.feedback}: people are asked by one process, and there are "
                f"{args.world_size}; start it on one."
            )
        try:
            from recipes.lib.feedback.project import open_project
        except ModuleNotFoundError as error:
            raise UserError(
                f"feedback={args.feedback}: the package {error.name} is not installed; pip "
                "install 'rlhf-recipes[feedback]'."
            ) from error
        self.reward, self.args = reward, args
        self.weight = (args.reward_weights or [1.0])[0]
        self.project = open_project(Path(args.feedback), {"action": "serve"}, may_begin=True)
        self.log = Path(args.output_dir) / LOG
        self.lines: list[dict[str, Any]] = []  # of each rollout what was asked, and what was taken
        self.head = head_of(reward.model)
        self.first_H = self.head.weight.detach().double().cpu().numpy()[0]
        self.hidden: dict[int, Table] = {}  # of what a rollout took

    def prepare(self, number: int) -> None:
        """Let the score head learn from what the rollouts before this one took."""
        known = {line["rollout"] for line in self.lines}
        written = read_jsonl(self.log) if self.log.is_file() else []
        self.lines += [line for line in written if line["rollout"] not in known]
        before = [line for line in self.lines if line["rollout"] < number]
        tokens = {name: ids for line in before for name, ids in line["asked"].items()}
        told = []
        for line, found in zip(before, targets(before), strict=True):
            if line["taken"] and line["rollout"] not in self.hidden:
                # Line by line, so that a run that is resumed has the same batches.
                rows = [tokens[row["item"]] for row in line["taken"]]
                self.hidden[line["rollout"]] = self._hidden(rows)
            both = zip(found, self.hidden.get(line["rollout"], ()), strict=True)
            told += [(target, hidden_H) for target, hidden_H in both if target is not None]
        weight_H = self.first_H
        if told:
            hidden_NH = np.stack([hidden_H for _, hidden_H in told])
            errors_N = np.array([target for target, _ in told]) - hidden_NH @ weight_H
            weight_H = weight_H + ridge(hidden_NH, errors_N)
        self._set_head(weight_H)

    def _set_head(self, weight_H: Table) -> None:
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight_H)[None])

    @contextmanager
    def as_it_began(self) -> Iterator[None]:
        """Evaluations are by the reward model as it began: one yardstick for the whole run."""
        now_H = self.head.weight.detach().double().cpu().numpy()[0]
        self._set_head(self.first_H)
        try:
            yield
        finally:
            self._set_head(now_H)

    def rate(self, number: int, asked: Sequence[Any], episodes: Sequence[Episode]) -> int:
        """Put people's scores in place of the reward model's, where there are some.

        Args:
            number: Of the rollout.
            asked: Prompts of the episodes.
            episodes: Scored by the reward model.

        Returns:
            How many have people's.
        """
        items, places = dict[str, Any](), defaultdict[str, list[int]](list)
        for place, episode in enumerate(episodes[: self.args.feedback_episodes]):
            prompt, said = asked[place], [{"content": episode.text, "run": self.args.output_dir}]
            name = item_id([prompt, "rating"], [episode.text])
            item = {"id": name, "prompt": prompt, "completions": said, "kind": "rating"}
            items[name] = item | {"aspects": ["overall"]}
            places[name].append(place)
        line = next((line for line in self.lines if line["rollout"] == number), None)
        if line is None or [*line["asked"]] != [*items]:  # of none, or of another run
            self.lines = [line for line in self.lines if line["rollout"] < number]
            self.lines.append(self._ask(number, items))
            write_jsonl(self.log, self.lines)  # before it is used
        until = [line for line in self.lines if line["rollout"] <= number]
        scores = defaultdict[str, list[float]](list)
        for line, found in zip(until, targets(until), strict=True):
            for row, target in zip(line["taken"], found, strict=True):
                if target is not None:
                    scores[row["item"]].append(target)
        rated = {place: scores[name] for name in scores for place in places.get(name, ())}
        for place, of_people in rated.items():
            episodes[place].score = self.weight * fmean(of_people)
        return len(rated)

    def _ask(self, number: int, items: dict[str, Any]) -> dict[str, Any]:
        """Wait for ratings, feedback_timeout seconds at most; late ones of before come along."""
        store, args = self.project.store, self.args
        store.close_items([*items])  # nobody is asked about the policy of before
        store.add_items(items.values())
        note(
            f"rollout {number}: {len(items)} completions wait for ratings, "
            f"{args.feedback_timeout:g} s at most; rlhf feedback serve --output_dir "
            f"{args.feedback} shows them."
        )
        deadline = time.monotonic() + args.feedback_timeout
        while True:
            rows = store.rows()
            gone = {row["supersedes"] for row in rows}
            # Who cannot judge has answered, too.
            said = {r["item"] for r in rows if r["id"] not in gone and not r["supersedes"]}
            if items.keys() <= said or time.monotonic() > deadline:
                break
            time.sleep(PAUSE)
        line: dict[str, Any] = {"rollout": number, "asked": {}, "taken": []}
        line["asked"] = {name: self._tokens(item) for name, item in items.items()}
        tokens = {name: ids for one in [*self.lines, line] for name, ids in one["asked"].items()}
        known = {(row["item"], row["who"]) for one in self.lines for row in one["taken"]}
        for row in current(rows):
            who = sha256(row["annotator"].encode()).hexdigest()[:8]  # a name may be forgotten
            is_new = row["item"] in tokens and (row["item"], who) not in known
            if is_new and row["kind"] == "rating" and row["weight"]:
                taken = {"item": row["item"], "who": who, "rating": row["value"]}
                line["taken"].append(taken)
        line["taken"].sort(key=lambda row: (row["item"], row["who"]))
        if line["taken"]:
            hidden_NH = self._hidden([tokens[row["item"]] for row in line["taken"]])
            for row, score in zip(line["taken"], (hidden_NH @ self.first_H).tolist(), strict=True):
                row["score"] = score
        return line

    def _tokens(self, item: dict[str, Any]) -> list[int]:
        answers = as_answers([item["prompt"]], [item["completions"][0]["content"]])
        texts, is_plain = (
            self.reward.texts([item["prompt"]], answers),
            isinstance(item["prompt"], str),
        )
        ids: list[int] = self.reward.tokenizer(texts, add_special_tokens=is_plain)["input_ids"][0]
        return ids

    @torch.no_grad()
    def _hidden(self, rows: list[list[int]]) -> Table:
        """What the score head reads of each row, shape (N, H)."""
        found: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        hidden_NH = np.zeros((len(rows), len(self.first_H)))
        pad = self.reward.model.config.get_text_config().pad_token_id
        try:
            for chosen in length_batches([*map(len, rows)], self.reward.batch_size):
                self.reward.outputs([rows[n] for n in chosen])
                states = found.pop().double().cpu()
                for place, row in enumerate(chosen):
                    # A classifier scores every token, and reads the last that is no padding by id.
                    words = [n for n, token in enumerate(rows[row]) if token != pad] or [-1]
                    own = states[place] if states.ndim == 2 else states[place, words[-1]]
                    hidden_NH[row] = own.numpy()
        finally:
            handle.remove()
        return hidden_NH


def head_of(model: Any) -> torch.nn.Linear:
    """The score head of a classifier, of one with an adapter, or of a role on a shared base."""
    heads = [
        part
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear)
        and (name.split(".")[-1] == "score" or name.endswith("score.modules_to_save.default"))
    ]
    return heads[-1]


def targets(lines: Sequence[dict[str, Any]]) -> list[list[float | None]]:
    """What ratings mean in units of the reward model.

    Of each annotator the ratings get the mean and the spread that the reward model's own scores of
    the same completions have; None of one who has given fewer than two different ratings.

    Args:
        lines: Of the log; each row that was taken has who, rating and score.

    Returns:
        Of each line the targets of its rows, in units of the reward model's score.
    """
    given = defaultdict[str, list[tuple[float, float]]](list)
    for line in lines:
        for row in line["taken"]:
            given[row["who"]].append((row["rating"], row["score"]))
    units = {}
    for name, both in given.items():
        ratings, scores = zip(*both, strict=True)
        units[name] = fmean(ratings), pstdev(ratings), fmean(scores), pstdev(scores)

    def target(row: dict[str, Any]) -> float | None:
        mean, spread, own_mean, own_spread = units[row["who"]]
        return own_mean + own_spread * (row["rating"] - mean) / spread if spread else None

    return [[target(row) for row in line["taken"]] for line in lines]


def ridge(hidden_NH: Table, errors_N: Table) -> Table:
    """What is to be added to the weights of the head, for errors that it still makes.

    The penalty is the mean squared length of the rows: n ratings of one text move its score by
    n / (n + 1) of the way.

    Args:
        hidden_NH: What the head reads, shape (N, H).
        errors_N: Targets less its scores, in units of the score.

    Returns:
        Shape (H,).
    """
    penalty = (hidden_NH**2).sum(1).mean()
    inner_HH = hidden_NH.T @ hidden_NH + penalty * np.eye(hidden_NH.shape[1])
    found: Table = np.linalg.solve(inner_HH, hidden_NH.T @ errors_N)
    return found
