"""What to ask: of sampled completions the pairs of which an answer is expected to tell most.

A share is drawn at random and held out from training, so that what is measured on it stays
unbiased. Each prompt gives one pair at most.

Shapes: N prompts, C completions of each, K outputs of the ensemble, P pairs of completions, H
hidden size.

Sources: Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011
(disagreement); Sener and Savarese, Active Learning for Convolutional Neural Networks, 2018
(diversity: the farthest first).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError, note
from recipes.lib.feedback.sampling import Sampler, sample_sets, sampled_item
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.rewards.scoring import as_answers
from recipes.lib.runs.files import read_jsonl

Table = NDArray[np.float64]
Texts = Sequence[Sequence[str]]  # by prompt, of each its completions
LEAST_RANDOM = 0.2
ITEMS = "items.jsonl"


def check_selection(script: Any) -> None:
    """Check the keys before anything is loaded.

    Raises:
        UserError: One is missing, out of its range, or of another strategy.
    """
    model, needs = script.reward_model_name_or_path, script.strategy not in ("random", "diversity")
    if needs and not model:
        raise UserError(
            f"strategy={script.strategy}: reads scores; give reward_model_name_or_path."
        )
    if model and not needs:
        raise UserError(
            f"reward_model_name_or_path={model}: strategy={script.strategy} reads no scores; "
            "leave it out."
        )
    if not LEAST_RANDOM <= script.random_share <= 1:
        raise UserError(
            f"random_share={script.random_share}: must be from {LEAST_RANDOM} to 1, so that what "
            "is measured on these items stays unbiased."
        )
    if not script.names[:1] or script.names[2:]:
        raise UserError(
            f"names={script.names}: name the run, or the two runs, that is asked about."
        )
    if script.num_completions < 2 or script.candidates_per_item < 1:
        told = f"num_completions={script.num_completions}, "
        told += f"candidates_per_item={script.candidates_per_item}"
        raise UserError(f"{told}: must be 2 and 1 or more.")
    if not 0 <= script.repeat < 1 or script.temperature <= 0:
        told = f"repeat={script.repeat}, temperature={script.temperature}"
        raise UserError(f"{told}: repeat is a share below 1, and at temperature 0 texts are equal.")
    if script.num_items is None or script.num_items < 2:
        raise UserError(f"num_items={script.num_items}: give how many are asked, 2 or more.")


class Chooser:
    """Chooses what is asked.

    Args:
        script: The keys, checked.

    Raises:
        UserError: The reward model cannot be used, or a selection of before is not there.
    """

    def __init__(self, script: Any) -> None:
        self.script = script
        self.before = [item for name in script.asked for item in _items_of(name)]
        self.outputs = self.features = None
        trusted = {"trust_remote_code": script.trust_remote_code}
        if script.reward_model_name_or_path:
            least = 2 if script.strategy == "disagreement" else 1
            self.outputs = _scorer(script.reward_model_name_or_path, least, **trusted)
        elif script.strategy == "diversity":
            self.features = _scorer(script.names[0], is_base=True, **trusted)

    def choose(
        self, prompts: Sequence[Any], sample: Sampler
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Sample completions of prompts that were not asked, and choose.

        Args:
            prompts: Texts or messages.
            sample: Writes completions.

        Returns:
            Items for `rlhf feedback serve` and `simulate`, and their numbers.

        Raises:
            UserError: All prompts were asked before.
        """
        script, draw = self.script, random.Random(f"select {self.script.seed}")
        again = min(round(script.repeat * script.num_items), len(self.before))
        wanted, reads = script.num_items - again, bool(self.outputs or self.features)
        known = {prompt_text(item["prompt"]) for item in self.before}
        by_text = {prompt_text(prompt): prompt for prompt in prompts}  # each is asked once
        fresh = [prompt for text, prompt in by_text.items() if text not in known]
        if not fresh:
            raise UserError(f"asked={script.asked}: all prompts were asked before; name others.")
        number = min(wanted * (script.candidates_per_item if reads else 1), len(fresh))
        drawn = draw.sample(fresh, number)
        count = script.num_completions if self.outputs else 2
        models = [script.names[n % len(script.names)] for n in range(count)]
        jobs = [{"prompt": prompt, "models": models} for prompt in drawn]
        found = [*sample_sets(jobs, sample, script.seed).items()]
        prompts = [drawn[place] for place, _ in found]
        sets = [said for _, said in found]
        if not sets:
            raise UserError(
                f"names={script.names}: all completions of a prompt were equal or empty."
            )
        if len(sets) < wanted:
            note(f"num_items={script.num_items}: only {len(sets)} prompts are left with two texts.")
        items = []
        for place, (one, other), held_out in self._places(prompts, sets, wanted):
            two, names = [sets[place][n] for n in (one, other)], [models[n] for n in (one, other)]
            items.append(sampled_item(prompts[place], two, names, held_out=held_out))
        held = sum("held_out" in item for item in items)
        told = {"num_items": len(items) + again, "num_held_out": held, "num_repeated": again}
        return items + draw.sample(self.before, again), told | {"num_candidates": len(sets)}

    def _places(
        self, prompts: list[Any], sets: list[Any], wanted: int
    ) -> Iterator[tuple[int, tuple[int, int], bool]]:
        """The place of each chosen prompt, of its two completions, and whether it is held out.

        The prompts come in random order, and the first ones are those drawn at random.
        """
        share, asked = self.script.random_share, (0, 1)
        num_random = min(math.ceil(share * self.script.num_items), wanted, len(sets))
        yield from ((place, asked, True) for place in range(num_random))
        rest = range(num_random, len(sets))
        texts = [[one.text for one in sets[place]] for place in rest]
        said = [prompts[place] for place in rest], texts
        if self.outputs is not None:
            gains_NP, pairs = pair_gains(self.script.strategy, self.outputs(*said))
            order = (-gains_NP.max(1)).argsort(kind="stable").tolist()
            chosen = [(rest[n], pairs[int(gains_NP[n].argmax())]) for n in order]
        elif self.features is not None:
            found = farthest_first(self.features(*said), wanted - num_random)
            chosen = [(rest[n], asked) for n in found]
        else:
            chosen = [(place, asked) for place in rest]
        yield from ((place, two, False) for place, two in chosen[: wanted - num_random])


def _items_of(name: str) -> list[dict[str, Any]]:
    path = Path(name) / "final" / ITEMS
    if not path.is_file():
        raise UserError(f"asked={name}: holds no {ITEMS}; name a run of rlhf feedback select.")
    return read_jsonl(path)


def _scorer(
    name: str, least: int = 1, *, is_base: bool = False, trust_remote_code: bool
) -> Callable[[list[Any], Texts], Table]:
    """What a reward model says of completions, shape (N, C, K); of a base its hidden states."""
    import torch

    from recipes.lib.models.classifiers import load_reward_model
    from recipes.lib.models.policies import placed
    from recipes.lib.models.reward_heads import heads_of

    model, tokenizer = load_reward_model(
        name, new_head=is_base, trust_remote_code=trust_remote_code
    )
    if is_base:
        model.score = torch.nn.Identity()  # its scores are the hidden states
    if (found := heads_of(model.config)) is not None and found.ensemble < least:
        raise UserError(
            f"reward_model_name_or_path={name}: has one output, and nobody to disagree with; train "
            "it with ensemble: 5, or choose another strategy."
        )
    every: Any = torch.nn.Identity()  # in place of one score of an ensemble
    reward = RewardModel(placed(model), tokenizer, name, aggregation=every)

    def outputs(prompts: list[Any], texts: Texts) -> Table:
        asked = [prompt for prompt, some in zip(prompts, texts, strict=True) for _ in some]
        answers = as_answers(asked, [text for some in texts for text in some])
        found = reward.scores(asked, answers).double()
        found = found.flatten(1) if is_base else found.sum(1)  # over hidden states; over aspects
        made: Table = found.unflatten(0, (len(texts), -1)).numpy()
        return made

    return outputs


def pair_gains(strategy: str, outputs_NCK: Table) -> tuple[Table, list[tuple[int, int]]]:
    """What a strategy expects of an answer to each pair.

    disagreement is what the answer would tell of which output of the ensemble is right, in nats:
    the entropy of the mean probability less the mean of the entropies. closest and widest are of
    the gap of the mean scores.

    Args:
        strategy: One of the three.
        outputs_NCK: Scores by each output of the ensemble, shape (N, C, K).

    Returns:
        Gains of shape (N, P), and the places of the two completions of each of the P pairs.
    """
    places = [*combinations(range(outputs_NCK.shape[1]), 2)]
    gaps_NPK = np.stack([outputs_NCK[:, a] - outputs_NCK[:, b] for a, b in places], axis=1)
    if strategy == "disagreement":
        chances_NPK = 1 / (1 + np.exp(-gaps_NPK))
        return _entropy(chances_NPK.mean(-1)) - _entropy(chances_NPK).mean(-1), places
    width_NP = np.abs(gaps_NPK.mean(-1))
    return width_NP if strategy == "widest" else -width_NP, places


def _entropy(chances: Table) -> Table:
    inside = np.clip(chances, 1e-12, 1 - 1e-12)
    found: Table = -inside * np.log(inside) - (1 - inside) * np.log1p(-inside)
    return found


def farthest_first(features_NCH: Table, count: int) -> list[int]:
    """Pairs far from each other, the longest first; a pair and its reverse are the same.

    A pair is the difference of its two hidden states, each divided by its root mean square.

    Args:
        features_NCH: Hidden states of two completions of each prompt, shape (N, 2, H).
        count: How many are wanted.

    Returns:
        Places of the prompts, fewer where there are fewer.
    """
    pairs_NH = features_NCH[:, 0] - features_NCH[:, 1]
    pairs_NH = pairs_NH / (np.sqrt((pairs_NH**2).mean(0)) + 1e-12)
    nearest_N = np.linalg.norm(pairs_NH, axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(pairs_NH))):
        chosen.append(int(nearest_N.argmax()))
        last_H = pairs_NH[chosen[-1]]
        for other in (pairs_NH - last_H, pairs_NH + last_H):
            nearest_N = np.minimum(nearest_N, np.linalg.norm(other, axis=1))
        nearest_N[chosen[-1]] = -1.0
    return chosen
