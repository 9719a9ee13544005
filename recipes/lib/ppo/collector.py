"""Collecting episodes: sample, score, and turn scores into what the objective needs.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens (padded right), F functions,
N turns, one for each episode where there is no environment.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from recipes.lib.data.prompts import Prompts, completion_text
from recipes.lib.distributed.agreement import agreed_section
from recipes.lib.distributed.signals import disarm
from recipes.lib.generation.sampling import Decoding, episode_uniforms, further_stops, pad_left
from recipes.lib.models.forward import Batch, length_batches, pad_right
from recipes.lib.ppo.actor_critic import nonzero_std, reference_logps
from recipes.lib.ppo.cost_controller import CostController, refuse_half_a_limit
from recipes.lib.ppo.direct_feedback import DirectFeedback
from recipes.lib.ppo.kl_controller import KLController
from recipes.lib.ppo.metrics import (
    describe_costs,
    describe_episodes,
    describe_scores,
    describe_turns,
    describe_values,
)
from recipes.lib.ppo.playing import (
    Player,
    check_environment,
    conversation,
    conversation_limit,
    flat,
)
from recipes.lib.ppo.returns import (
    RunningMoments,
    advantages_and_returns,
    by_episode,
    returns_to_go,
    token_rewards,
    whiten,
)
from recipes.lib.ppo.rollouts import (
    Episode,
    Rollout,
    action_mask,
    check_finite_scores,
    find_stop_token,
    naming_rollout,
    prompt_index,
    stack,
    turn_places,
)
from recipes.lib.ppo.samplers import Sampler, VLLMSampler
from recipes.lib.ppo.samples import sample_rows
from recipes.lib.rewards.held_out import check_best_metric, held_out_metrics
from recipes.lib.rewards.scoring import (
    RewardFunction,
    as_answers,
    distinct_names,
    reward_weights,
    weighted_scores,
)

# Evaluation has its own noise: the same episode numbers under another seed.
EVALUATION_SEED = 1 << 62
LEAST_SPREAD = 0.1  # of the returns, in units of the first scores: less is next to nothing


class Collector:
    """Collects the episodes of a PPOTrainer.

    Args:
        trainer: The trainer: its models, tokenizer, configuration, accelerator and environment.
        functions: Reward functions.
        prompts: Prompts to train on.
        costs: Functions whose sum is a cost with a limit.
        held_out: Reward functions that evaluations ask, too.
    """

    def __init__(
        self,
        trainer: Any,
        functions: Sequence[RewardFunction],
        prompts: Prompts,
        costs: Sequence[RewardFunction] = (),
        held_out: Sequence[RewardFunction] = (),
    ) -> None:
        self.trainer = trainer
        self.functions, self.costs = list(functions), list(costs)
        self.held_out = list(held_out)
        refuse_half_a_limit(distinct_names(self.costs), trainer.args.cost_limit)
        check_best_metric(trainer.args.metric_for_best_model, distinct_names(self.held_out))
        self.asked = self.functions + self.costs + self.held_out
        self.people = DirectFeedback(trainer, self.functions) if trainer.args.feedback else None
        if trainer.worlds is not None:
            check_environment(trainer, self.asked)
        self.prompts = prompts
        self.weights = reward_weights(self.functions, trainer.args.reward_weights)
        args, tokenizer = trainer.args, trainer.processing_class
        self.kl = KLController(args.kl_coef, args.target_kl, args.kl_horizon)
        self.cost = CostController()
        self.moments = RunningMoments()
        self.returns_std = 1.0  # of the rollout in hand
        # A critic of zeros gets its units from the first scores that differ.
        self.has_units = args.critic_model_name_or_path is not None
        stop = find_stop_token(tokenizer, args.stop_token)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop
        policy = trainer.actor_critic.policy
        others = further_stops(policy, stop) if args.stop_token is None else ()
        self.decoding = Decoding(args.max_completion_length, args.temperature, stop, pad, others)
        longest = max(map(len, prompts.ids)) or args.max_prompt_length
        sampler = VLLMSampler if args.sampler == "vllm" else Sampler
        self.sampler: Sampler | VLLMSampler = sampler(trainer, self.decoding, longest)
        self.player = None
        if trainer.worlds is not None:
            limit = conversation_limit(args, policy.config)
            self.player = Player(trainer, self.sampler, self.decoding, limit)
        self.rated = 0  # episodes of the rollout that have people's scores
        self.metrics: dict[str, float] = {}
        self.recent: list[tuple[float, int]] = []  # return and turns of episodes that ended
        self.samples: list[dict[str, Any]] = []

    def rollout(self, number: int) -> Rollout:
        """Make a rollout; every process returns the whole of it.

        Args:
            number: Number of the rollout in the run.

        Returns:
            The rollout.
        """
        args, clock = self.trainer.args, self.trainer.clock
        with naming_rollout(number):
            sampled_before = self._sample_share(number) if self.sampler.is_collective else None
            with agreed_section():
                mine = sampled_before if sampled_before is not None else self._sample_share(number)
                if self.people:
                    self.people.prepare(number)
                with clock.measure("scoring"):
                    self.score(self.prompts, mine)
                if self.people:
                    with clock.measure("people"):
                        asked = [self.prompts.data[e.row]["prompt"] for e in mine]
                        self.rated = self.people.rate(number, asked, mine)
        with clock.measure("scoring"):
            episodes: list[Episode] = gather_object(mine)
            slots = gather_object(self.player.moved) if self.player else []
            disarm()  # from here on it changes what belongs to the run
            if self.player:
                self.player.slots = slots
            rollout = self._finish(episodes, number * args.rollout_batch_size)
        if self.people:
            self.metrics["feedback/rated"] = self.rated / len(episodes)
        sampled = sum(len(e.completion_ids) for e in episodes)
        clock.count("sampling", sampled)
        clock.count("scoring", sampled + sum(len(e.prompt_ids) for e in episodes))
        return rollout

    def _sample_share(self, number: int) -> list[Episode]:
        """The episodes of a rollout that are this process's, without scores."""
        args, clock = self.trainer.args, self.trainer.clock
        share = args.rollout_batch_size // args.world_size
        begin = number * args.rollout_batch_size + args.process_index * share
        numbers = range(begin, begin + share)
        if self.player and args.context == "last":
            slots = args.num_environments // args.world_size
            mine = range(args.process_index * slots, (args.process_index + 1) * slots)
            with clock.measure("sampling"):
                return self.player.share(self.prompts, mine, share // slots)
        rows = [
            prompt_index(args.seed, n // args.num_generations, len(self.prompts)) for n in numbers
        ]
        with clock.measure("sampling"):
            if self.player:
                return flat(self.player.whole(self.prompts, rows, numbers, args.seed))
            uniforms_BC = episode_uniforms(args.seed, numbers, args.max_completion_length)
            return self.sample(self.prompts, rows, uniforms_BC)

    def sample(
        self, prompts: Prompts, rows: Sequence[int], uniforms_BC: Tensor | None
    ) -> list[Episode]:
        """Sample one completion for each row.

        Args:
            prompts: The prompts.
            rows: Row of each episode's prompt.
            uniforms_BC: Noise of each episode; None for the most probable tokens.

        Returns:
            The episodes, in the order of the rows, without scores.
        """
        said = self.sampler.completions([prompts.ids[row] for row in rows], uniforms_BC)
        return [Episode(row, prompts.ids[row], ids) for row, ids in zip(rows, said, strict=True)]

    @torch.no_grad()
    def score(self, prompts: Prompts, episodes: list[Episode]) -> None:
        """Fill in texts, rewards, log-probabilities and values of episodes."""
        self.trainer.actor_critic.eval()
        self._reward(prompts, episodes)
        if self.costs and episodes:
            costs_B, _ = self._ask(self.costs, [1.0] * len(self.costs), prompts, episodes)
            for episode, cost in zip(episodes, costs_B.tolist(), strict=True):
                episode.cost = cost
        stop = [self.decoding.stop_token_id]
        goes_on = [e for e in episodes if e.following_ids]
        # What follows is a prompt to which anything might be said: its value stands before that.
        following = [Episode(e.row, e.following_ids, stop) for e in goes_on]
        self._score_rows([*episodes, *following])
        for episode, after in zip(goes_on, following, strict=True):
            assert after.values is not None
            episode.next_value = after.values[0].item()

    def _score_rows(self, episodes: list[Episode]) -> None:
        """Fill in log-probabilities and values."""
        args, model = self.trainer.args, self.trainer.actor_critic
        lengths = [len(e.prompt_ids) + len(e.completion_ids) for e in episodes]
        for rows in length_batches(lengths, args.scoring_batch_size):
            batch = [episodes[i] for i in rows]
            ids_BP, mask_BP, ids_BC, mask_BC = self._padded(batch, args.device)
            ids = torch.cat([ids_BP, ids_BC], dim=1)
            mask = torch.cat([mask_BP, mask_BC], dim=1)
            with self.trainer.accelerator.autocast():
                width = ids_BC.shape[1]
                logps_BC, _, values_BC = model(ids, mask, width, args.temperature)
                ref_logps_BC = reference_logps(
                    model, self.trainer.reference, Batch(ids, mask, width), args.temperature
                )
            check_finite_scores(mask_BC, logps_BC, ref_logps_BC, values_BC)
            for row, episode in enumerate(batch):
                length = len(episode.completion_ids)
                episode.logps = logps_BC[row, :length].cpu()
                episode.ref_logps = ref_logps_BC[row, :length].cpu()
                episode.values = values_BC[row, :length].cpu()

    def _padded(self, episodes: list[Episode], device: Any) -> tuple[Tensor, ...]:
        """Ids and mask of the prompts, ids and mask of the completions."""
        pad = self.decoding.pad_token_id
        prompts = pad_left([e.prompt_ids for e in episodes], pad, device)
        return *prompts, *pad_right([e.completion_ids for e in episodes], pad, device)

    def _reward(self, prompts: Prompts, episodes: list[Episode]) -> None:
        if self.player:
            self._reward_conversations(prompts, episodes)
        if not episodes or self.player:
            return
        tokenizer = self.trainer.processing_class
        ends = self.decoding.other_stop_token_ids
        for e in episodes:
            e.text = completion_text(tokenizer, e.prompt_ids, e.completion_ids, ends)
        total_B, said_BF = self._ask(self.functions, self.weights, prompts, episodes)
        for i, episode in enumerate(episodes):
            episode.score = total_B[i].item()
            episode.said = tuple(said_BF[i].tolist())

    def _reward_conversations(self, prompts: Prompts, episodes: list[Episode]) -> None:
        """What reward functions say of a conversation belongs to its last turn."""
        tokenizer = self.trainer.processing_class
        for e in episodes:
            e.text = completion_text(tokenizer, e.prompt_ids, e.completion_ids)
        if self.functions and episodes:
            total_B, said_BF = self._ask(self.functions, self.weights, prompts, episodes)
            for i, episode in enumerate(episodes):
                episode.turns[-1].reward += total_B[i].item()
                episode.said = tuple(said_BF[i].tolist())
        for e in episodes:
            e.score = sum(e.rewards)

    def _ask(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None,
        prompts: Prompts,
        episodes: list[Episode],
    ) -> tuple[Tensor, Tensor]:
        rows, ids = [e.row for e in episodes], [e.completion_ids for e in episodes]
        columns = prompts.columns(rows)
        if self.player:
            role = self.player.rendering.role
            asked, answers = [e.asked for e in episodes], [conversation(e, role) for e in episodes]
        else:
            asked = [prompts.data[row]["prompt"] for row in rows]
            answers = as_answers(asked, [e.text for e in episodes])
        return weighted_scores(functions, weights, asked, answers, ids, columns)

    def _finish(self, episodes: list[Episode], first: int) -> Rollout:
        """From the episodes of all processes to one rollout; the same on each of them."""
        args = self.trainer.args
        ids_BP, mask_BP, ids_BC, mask_BC = self._padded(episodes, "cpu")
        logps_BC = stack([e.logps for e in episodes])
        ref_logps_BC = stack([e.ref_logps for e in episodes])
        values_BC = stack([e.values for e in episodes])
        actions_BC = action_mask(episodes, mask_BC)
        (rows_N, _), scores_N = (places := turn_places(episodes)), self.penalised(episodes)
        scores_B = torch.zeros(len(episodes)).index_add(0, rows_N, scores_N)
        charged_N = self.charged(scores_N, scores_B, episodes)
        nexts_B = torch.tensor([e.next_value for e in episodes])
        if not self.has_units:
            values_BC, nexts_B = self._units(charged_N, rows_N, episodes, values_BC, nexts_B)
            values_BC = values_BC * actions_BC
        rewards_BC, kl_BC = token_rewards(
            charged_N, places, logps_BC, ref_logps_BC, actions_BC, self.kl.value
        )
        if args.whiten_rewards:
            rewards_BC = whiten(rewards_BC, actions_BC, shift_mean=False)
        advantages_BC, returns_BC = self._advantages(
            episodes, rewards_BC, values_BC, actions_BC, nexts_B
        )
        least = LEAST_SPREAD * self.trainer.actor_critic.value_scale.item()
        self.returns_std = max(nonzero_std(returns_BC[actions_BC.bool()]), least)
        whitened_BC = whiten(advantages_BC, actions_BC)
        names = distinct_names(self.functions)
        self.metrics = describe_scores(scores_B, kl_BC, logps_BC, actions_BC, self.kl.value)
        self.metrics |= describe_episodes(episodes, self.ended(episodes), names)
        self.metrics |= describe_values(values_BC, returns_BC, actions_BC)
        self.metrics |= describe_turns(episodes, self.metrics, self.recent)
        if self.costs:
            self.metrics |= describe_costs(self.metrics, self.cost.cost, self.cost.value)
        self.kl.update(self.metrics["objective/kl"], len(episodes))
        if args.log_completions:
            of_tokens = {"kl": kl_BC, "value": values_BC}
            of_tokens |= {"advantage": whitened_BC, "reward": rewards_BC}
            self.samples = sample_rows(self.trainer.processing_class, first, episodes, of_tokens)
        return Rollout(
            prompt_ids=ids_BP,
            prompt_mask=mask_BP,
            completion_ids=ids_BC,
            completion_mask=mask_BC,
            old_logps=logps_BC,
            ref_logps=ref_logps_BC,
            old_values=values_BC,
            advantages=whitened_BC,
            returns=returns_BC,
            action_mask=actions_BC,
        )

    def _units(
        self,
        scores_N: Tensor,
        rows_N: Tensor,
        episodes: list[Episode],
        values_BC: Tensor,
        nexts_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Values, and those of what follows, in the units of the first scores."""
        sums_B = torch.zeros(len(episodes)).index_add(0, rows_N, scores_N)
        returns_B = returns_to_go(sums_B, [e.goes_on for e in episodes], self.trainer.args.gamma)
        both = torch.cat([values_BC, nexts_B.unsqueeze(1)], dim=1)
        both = self.trainer.actor_critic.begin_values(returns_B, both)
        self.has_units = nonzero_std(returns_B, 0.0) > 0.0
        follows_B = torch.tensor([float(bool(e.following_ids)) for e in episodes])
        return both[:, :-1], both[:, -1] * follows_B

    def _advantages(
        self,
        episodes: list[Episode],
        rewards_BC: Tensor,
        values_BC: Tensor,
        actions_BC: Tensor,
        nexts_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns over what the policy wrote, whatever rows it stands in."""
        args, counts = self.trainer.args, actions_BC.sum(1).tolist()
        gamma_BC = torch.full(rewards_BC.shape, args.gamma, dtype=torch.float64)
        if self.player and args.gamma_per == "turn":
            gamma_BC.fill_(1.0)
            gamma_BC[turn_places(episodes)] = args.gamma
        lengths_E, lasts_E, length = [], [], 0
        for row, episode in enumerate(episodes):
            length += int(counts[row])
            if not episode.goes_on:
                lengths_E.append(length)
                lasts_E.append(row)
                length = 0
        rewards_EL, values_EL, gamma_EL, mask_EL = (
            by_episode(of_tokens, actions_BC, lengths_E)
            for of_tokens in (rewards_BC, values_BC, gamma_BC, actions_BC)
        )
        of_episodes = advantages_and_returns(
            rewards_EL, values_EL, mask_EL, gamma_EL, args.lam, nexts_B[lasts_E]
        )
        nothing_BC = torch.zeros_like(rewards_BC)
        advantages_BC, returns_BC = (
            nothing_BC.masked_scatter(actions_BC.bool(), of_tokens[mask_EL.bool()])
            for of_tokens in of_episodes
        )
        return advantages_BC, returns_BC

    def penalised(self, episodes: Sequence[Episode]) -> Tensor:
        """Scores of turns as the objective sees them: normalised, clipped, penalised if cut off."""
        args = self.trainer.args
        scores_N = torch.tensor([reward for e in episodes for reward in e.rewards])
        if args.normalize_rewards:
            self.moments.update(torch.tensor([e.score for e in episodes]))
            scores_N = scores_N / self.moments.std
        if args.reward_clip is not None:
            scores_N = scores_N.clamp(-args.reward_clip, args.reward_clip)
        if args.missing_eos_penalty is not None:
            scores_N = scores_N - args.missing_eos_penalty * (1.0 - self.ended(episodes))
        return scores_N

    def charged(self, scores_N: Tensor, scores_B: Tensor, episodes: Sequence[Episode]) -> Tensor:
        """Scores less what the cost weighs; advantages are whitened, so steps do not grow by it."""
        if not self.costs:
            return scores_N
        costs_B = torch.tensor([e.cost for e in episodes])
        self.cost.update(costs_B, scores_B, self.trainer.args.cost_limit)
        lasts_B = torch.tensor([len(e.rewards) for e in episodes]).cumsum(0) - 1
        charged_N = scores_N.clone()
        charged_N[lasts_B] -= self.cost.value * costs_B
        return charged_N

    def ended(self, episodes: Sequence[Episode]) -> Tensor:
        """1 for each turn that ends with a stop token."""
        lasts = [e.completion_ids[end - 1] for e in episodes for _, end in e.spans]
        return torch.tensor([float(token in self.decoding.stops) for token in lasts])

    def evaluate(self, prompts: Prompts, seed: int) -> dict[str, float]:
        """Score what the policy says to held-out prompts.

        Args:
            prompts: The prompts.
            seed: Seed of the noise; with it the same at every evaluation.

        Returns:
            Mean score, KL (nats per completion) and length at the temperature of training, with a
            limit the mean cost, the mean score of the most probable completions, and what held-out
            rewards say.
        """
        args, said = self.trainer.args, []
        rows = range(args.process_index, len(prompts), args.world_size)
        uniforms_BC = episode_uniforms(seed, rows, args.max_completion_length)

        def say() -> tuple[list[Episode], list[Episode]]:
            if self.player:
                how = (prompts, rows, rows, seed)
                greedy = self.player.whole(*how, is_greedy=True)
                return flat(self.player.whole(*how)), flat(greedy)
            return self.sample(prompts, rows, uniforms_BC), self.sample(prompts, rows, None)

        said_before = say() if self.sampler.is_collective else None
        with agreed_section(), self.people.as_it_began() if self.people else nullcontext():
            sampled, greedy = said_before or say()
            self.score(prompts, sampled)
            self._reward(prompts, greedy)
            if self.held_out and sampled:
                _, said_BF = self._ask(self.held_out, None, prompts, sampled)
                said = [*zip(rows, said_BF.tolist(), strict=True)]
        sampled, greedy, said = map(gather_object, (sampled, greedy, said))
        num_episodes = sum(not e.goes_on for e in sampled)
        of_cost = {"cost": sum(e.cost for e in sampled) / len(sampled)} if self.costs else {}
        return (
            of_cost
            | {
                "scores": sum(e.score for e in sampled) / num_episodes,
                "kl": sum(e.kl for e in sampled) / len(sampled),
                "completions/mean_length": sum(e.num_tokens for e in sampled) / len(sampled),
                "greedy_scores": sum(e.score for e in greedy) / num_episodes,
            }
            | held_out_metrics(distinct_names(self.held_out), said)
        )
