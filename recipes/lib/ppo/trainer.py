"""PPO on the Trainer of transformers.

    maximise  E[score(y)] - kl_coef * KL(policy || reference)   where  E[cost(y)] <= cost_limit

The training dataloader is the stream of rollouts; loop, accumulation, schedule, callbacks, trackers
and saving are Trainer's. Against the textbook: the KL is a reward of each token and not a loss, the
end of a completion is terminal also where it was cut off, and values are clipped like ratios.

Source:
    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"; Schulman et al. 2017.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed

from recipes.lib.data.prompts import Prompts, check_context, tokenize_prompts
from recipes.lib.distributed.mixed_precision import cast_like_trained
from recipes.lib.distributed.shards import load_unsharded, unsharded, unsharded_model
from recipes.lib.environments.tools import make_worlds
from recipes.lib.errors import UserError
from recipes.lib.ppo import state
from recipes.lib.ppo.actor_critic import ActorCritic
from recipes.lib.ppo.collector import EVALUATION_SEED, Collector
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.critic import parameter_groups
from recipes.lib.ppo.health import Health, check_health, check_held_out
from recipes.lib.ppo.metrics import Clock
from recipes.lib.ppo.objective import check_first_ratio, forward_dtype, micro_batch_loss
from recipes.lib.ppo.roles import load_model_and_tokenizer, make_roles
from recipes.lib.ppo.rollouts import RolloutStream
from recipes.lib.ppo.samples import append_samples
from recipes.lib.rewards.judge import judge_counts
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.rewards.scoring import RewardFunction
from recipes.lib.rewards.shared_base import SharedBase
from recipes.lib.trainers.resumable import Resumable
from recipes.lib.trainers.row_fit import check_prompts

# Tokens of a completion that the brake counts at most: of a longer one healthy updates drift more.
MOST_TOKENS = 64


class PPOTrainer(Resumable, Trainer):
    """Trains a policy against reward functions with PPO.

    Args:
        model: Causal language model, or its folder or Hub id; the adapter of a PeftModel is
            trained on, held to a frozen copy of itself.
        reward_funcs: A function of TRL's signature, a reward model, its folder, run or Hub id, a
            reference `file.py:function`, or a list of these.
        args: The configuration.
        train_dataset: Prompts, as text or messages in a `prompt` column; further columns are handed
            on to the reward functions.
        eval_dataset: Prompts to evaluate on; several sets by name have metrics of their own.
        processing_class: Tokenizer; default: the model's.
        reward_processing_classes: Tokenizer of each reward model; default: its own.
        callbacks: Callbacks of Trainer.
        optimizers: Optimizer and scheduler; default: AdamW with a group for the critic.
        quantization_config: For loading a model given by name.
        peft_config: Adapter to train instead of the whole model.
        cost_funcs: As reward_funcs; their sum is a cost, kept within `args.cost_limit`.
        eval_reward_funcs: Rewards that evaluations ask and training never sees, as reward_funcs.
        environment: A class with `reset(**row) -> str` and `step(text) -> (str, reward, done,
            truncated)`, or `file.py:Class`: episodes are conversations with it. Then a row needs
            no `prompt`, and there need be no reward_funcs.
        tools: Functions that the policy may call in the format of its chat template.

    Raises:
        UserError: An argument is missing or does not fit the others.
    """

    args: PPOConfig
    optimizer: Any
    control: Any
    keeps_batches = True  # the rollout in hand
    sums_in_fp32 = True  # gradients of all processes
    loss_is_scaled_for_ga = True  # losses are divided by the tokens of the whole optimizer step

    def __init__(  # noqa: PLR0917  TRL's trainers have this order
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: PPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        cost_funcs: Any = None,
        eval_reward_funcs: Any = None,
        environment: Any = None,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        set_seed(args.seed)
        trusted: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
        with load_unsharded(args):  # roles are copies of each other
            policy, tokenizer = load_model_and_tokenizer(
                model, processing_class, quantization_config, **trusted
            )
            actor_critic, self.reference = make_roles(policy, args, peft_config)
        super().__init__(
            model=actor_critic,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        cast_like_trained(self, self.reference)
        adapters = actor_critic.adapters if args.share_backbone else None
        shared = SharedBase(adapters, tokenizer) if adapters is not None else None
        self.tools, self.worlds = list(tools), make_worlds(environment, tools, tokenizer)
        functions = self._load(reward_funcs, shared, reward_processing_classes)
        costs = self._load(cost_funcs, shared, key="cost_funcs")
        held_out = self._load(eval_reward_funcs, shared, key="eval_reward_funcs")
        self.clock, self.health = Clock(), Health()
        prompts = self._prompts(train_dataset)
        if self.worlds is None:
            check_prompts(actor_critic.policy, tokenizer, prompts)
        self.collector = Collector(self, functions, prompts, costs, held_out)
        self.stream = RolloutStream(args, unsharded(self, self.collector.rollout))
        self.sums: dict[str, float] = {}  # of the updates since the last log
        self.step_kl = 0.0  # nats per completion of the step in hand, this process's share
        self.braked = -1  # newest rollout whose updates have moved the policy far enough

    def _load(
        self,
        names: Any,
        shared: SharedBase | None,
        tokenizers: Any = None,
        key: str = "reward_funcs",
    ) -> list[RewardFunction]:
        pays = self.worlds is not None and not self.tools
        if not names and (pays or key != "reward_funcs"):
            return []
        args = self.args
        trusted: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
        own = (args.scoring_batch_size, args.device, shared, key)
        with load_unsharded(args):
            return load_reward_functions(names, tokenizers, *own, **trusted)

    @property
    def actor_critic(self) -> ActorCritic:
        """Policy and critic, without what the launcher wrapped around them."""
        module: ActorCritic = self.accelerator.unwrap_model(self.model)
        return module

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as Trainer does; what comes before the first update is no phase of the run."""
        with self.clock.measure(""):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The stream of rollouts, unprepared: see RolloutStream."""
        return self.stream

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW (or what `optim` says) with groups for policy and critic."""
        if self.optimizer is None:
            model = model if model is not None else self.model
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = self.get_decay_parameter_names(model)
            groups = parameter_groups(model, self.actor_critic, decayed, self.args)
            self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # In the formats that they have: under DeepSpeed in 16 bits Trainer would round them.
        device = self.args.device
        return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in inputs.items()}

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Tensor:
        """Backward pass of a micro-batch; the policy gets no gradient where it is to stay."""
        number = inputs["rollout_number"]
        if self.is_deepspeed_enabled and self.braked == number:
            return self._leave_out_step()
        loss = super().training_step(model, inputs, *more, **named)
        if self.accelerator.sync_gradients and self.args.max_approx_kl is not None:
            self._watch_kl(number, self.args.max_approx_kl)
        if number < self.args.critic_warmup_rollouts or self.braked == number:
            self.actor_critic.hold_policy()
        return loss

    def _watch_kl(self, number: int, limit: float) -> None:
        """Put the brake on if the policy is far from the one that sampled; all agree on it."""
        kl = torch.tensor(self.step_kl, dtype=torch.float64, device=self.args.device)
        if self.accelerator.reduce(kl, "sum").item() > limit:
            self.braked = number
        self.step_kl, share = 0.0, float(self.braked == number) / self.args.world_size
        self.sums["policy/braked"] = self.sums.get("policy/braked", 0.0) + share

    def _leave_out_step(self) -> Tensor:
        """Of a step in DeepSpeed's engine, which keeps gradients to itself, only the schedule."""
        if self.accelerator.sync_gradients and self.model_wrapped.lr_scheduler is not None:
            self.model_wrapped.lr_scheduler.step()
        return torch.zeros((), device=self.args.device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Loss of one micro-batch: its share of the optimizer step's mean over tokens."""
        args, mask_BC = self.args, inputs["completion_mask"]
        self.clock.begin("training")
        logps_BC, entropy_BC, values_BC = model(
            input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            attention_mask=torch.cat([inputs["prompt_mask"], mask_BC], dim=1),
            num_completion_tokens=mask_BC.shape[1],
            temperature=args.temperature,
            with_entropy_gradient=bool(args.entropy_coef),
        )
        if inputs["is_first_step"] and args.disable_dropout:
            check_first_ratio(logps_BC, inputs, forward_dtype(args, self.actor_critic.policy))
        inputs["returns_std"] = self.collector.returns_std
        loss, shares = micro_batch_loss(args, inputs, logps_BC, entropy_BC, values_BC)
        shares["steps"] = 1.0 / (args.gradient_accumulation_steps * args.world_size)
        length = inputs["num_tokens"] * args.num_mini_batches / args.rollout_batch_size
        self.step_kl += shares["policy/approxkl_avg"] * min(length, MOST_TOKENS)
        is_finite = all(map(math.isfinite, shares.values()))
        for name, share in shares.items():  # every name, for the sum over processes
            self.sums[name] = self.sums.get(name, 0.0) + (share if is_finite else 0.0)
        num_tokens = (inputs["prompt_mask"].sum() + mask_BC.sum()).item()
        self.clock.count("training", int(num_tokens) * args.world_size)
        # DDP takes the mean over processes, and the parts of a step are to be added.
        return loss * args.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the numbers of the rollout and of the updates since the last log."""
        args, is_update = self.args, "loss" in logs
        episodes = self.state.global_step * args.rollout_batch_size // args.steps_per_rollout
        # Trainer counts its epochs wrongly after a resume without skipped batches.
        self.state.epoch = episodes / (len(self.train_dataset) * args.num_generations)
        if is_update:
            logs |= self._update_metrics() | self.collector.metrics | {"episode": episodes}
            logs |= self.clock.take() | judge_counts(self.collector.asked)
            if "loss/policy_avg" in logs:  # not where every step was skipped
                logs["loss"] = logs["loss/policy_avg"] + args.vf_coef * logs["loss/value_avg"]
                logs |= check_health(self, logs)
        super().log(logs, start_time)
        if is_update and args.log_completions and args.should_save:
            append_samples(Path(args.output_dir), self.state.global_step, self.collector.samples)

    def _total_sums(self) -> dict[str, float]:
        """Sums of the updates since the last log, those of all processes added up."""
        names = sorted(self.sums)
        # float64, or a checkpoint between two logs would round them
        totals = torch.tensor([self.sums[n] for n in names], dtype=torch.float64)
        totals = totals.to(self.args.device)
        return dict(zip(names, self.accelerator.reduce(totals, "sum").tolist(), strict=True))

    def _update_metrics(self) -> dict[str, float]:
        metrics, self.sums = self._total_sums(), {}
        steps = metrics.pop("steps", 0.0)  # those whose loss was finite
        return {name: value / steps for name, value in metrics.items()} if steps else {}

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample on held-out prompts and score what was said.

        Args:
            eval_dataset: Prompts; default: those the trainer was made with.
            ignore_keys: Without effect; part of Trainer's signature.
            metric_key_prefix: Word before each metric.

        Returns:
            Mean score, KL (nats per completion) and length at the temperature of training, with a
            limit the mean cost, the mean score of the most probable completions, and what held-out
            rewards say.
        """
        if (data := eval_dataset if eval_dataset is not None else self.eval_dataset) is None:
            raise UserError("evaluation needs prompts; give eval_dataset.")
        if isinstance(data, dict):
            parts = [self.evaluate(d, None, f"{metric_key_prefix}_{n}") for n, d in data.items()]
            return {name: value for part in parts for name, value in part.items()}
        with self.clock.measure("evaluation"), unsharded_model(self, alone=True):
            seed = self.args.seed ^ EVALUATION_SEED
            metrics = self.collector.evaluate(self._prompts(data), seed)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(metrics))
        check_held_out(self)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        """Further arguments of the chat template."""
        kwargs = self.args.chat_template_kwargs
        return json.loads(kwargs) if isinstance(kwargs, str) else kwargs

    def _prompts(self, data: Dataset) -> Prompts:
        if self.worlds is not None:  # what stands in a row is no prompt until a world has begun
            return Prompts(data, [[] for _ in range(len(data))])
        args, own = self.args, (self.processing_class, self.args.max_prompt_length)
        prompts = tokenize_prompts(data, *own, self.template_kwargs)
        check_context(prompts, self.actor_critic.config, args.max_completion_length)
        return prompts

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and its tokenizer; into a checkpoint the critic's weights too."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        state.save_models(self, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.clock.measure("saving"):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            state.load_models(self, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def save_state_into(self, folder: Path) -> None:
        """With what Trainer forgets, keep where the stream stands and what it holds."""
        super().save_state_into(folder)
        sums = self._total_sums()
        if self.args.should_save:
            self.stream.save(folder, self.state.global_step)
            state.write_state(self, sums, folder)

    def load_state_from(self, folder: Path) -> None:
        """Put the stream back to where it stood."""
        super().load_state_from(folder)
        self.stream.load(folder)
        state.read_state(self, folder)

    def moment(self) -> dict[str, Any]:
        """What changes within a step, with the rollout in hand and what it changed."""
        in_hand = (self.stream.rollout, self.stream.number)
        now = copy.deepcopy(state.trainer_state(self, self.sums))
        return super().moment() | {"ppo": now, "rollout": in_hand}

    def go_back_to(self, moment: dict[str, Any]) -> None:
        """Undo what an abandoned step added."""
        super().go_back_to(moment)
        state.restore_state(self, moment["ppo"])
        self.stream.rollout, self.stream.number = moment["rollout"]
