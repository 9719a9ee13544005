"""Arguments of PPO, on top of those of every transformers Trainer."""

import math
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from recipes.lib.config.fields import option
from recipes.lib.config.values import out_of_range
from recipes.lib.distributed.shards import refuse_in_engine
from recipes.lib.errors import UserError

MULTIPLES = (
    ("total_episodes", "rollout_batch_size"),
    ("rollout_batch_size", "num_mini_batches"),
    ("rollout_batch_size", "num_generations"),
    ("rollout_batch_size", "num_environments"),
)
NUM_ENVIRONMENTS = 32  # side by side, where nothing else is said


@dataclass
class PPOConfig(TrainingArguments):
    """Configuration of PPOTrainer.

    Names are those of TRL 1.12's PPOConfig where it had one. `per_device_train_batch_size` is the
    micro-batch; the accumulation follows from `rollout_batch_size / num_mini_batches`, the
    micro-batch and the number of processes. KL is in nats, lengths are in tokens.

    Raises:
        UserError: A value is out of its range, or batches do not divide.
    """

    # Defaults of TrainingArguments that do not fit a PPO run.
    learning_rate: float = option(3e-6, "Learning rate of the policy at the start.")
    # Of lm-human-preferences and its successors; 1e-8 makes the first steps wild.
    adam_epsilon: float = option(1e-5, "Epsilon of Adam.")
    logging_steps: float | None = option(
        None, "Optimizer steps between two logs; default: those of one rollout."
    )
    gradient_accumulation_steps: int | None = option(
        None, "Derived from the batch sizes; do not set it."
    )
    report_to: None | str | list[str] = option(  # noqa: RUF036  TRL's parser needs None first
        "none", "Trackers to report to: tensorboard, trackio, wandb."
    )

    # Episodes and batches.
    total_episodes: int = option(10_240, "Completions to sample over the whole run.")
    rollout_batch_size: int = option(64, "Episodes of one rollout, all processes together.")
    num_ppo_epochs: int = option(4, "Passes over each rollout.")
    num_mini_batches: int = option(1, "Optimizer steps in each pass over a rollout.")
    num_generations: int = option(1, "Completions sampled for each prompt of a rollout.")
    sampling_batch_size: int = option(64, "Prompts in one batch of sampling, per process.")
    scoring_batch_size: int = option(
        32, "Sequences in one batch of log-probabilities, values and rewards."
    )

    # Sampling.
    sampler: str | None = option(
        None,
        "transformers: its generate; graph: an own loop, on a GPU in CUDA graphs; "
        "vllm: an extra. Default: graph on a CPU, else transformers.",
        choices=["transformers", "graph", "vllm"],
    )
    vllm_mode: str | None = option(
        None,
        "colocate: vLLM on the cards of the training, the default; server: on its own.",
        choices=["colocate", "server"],
    )
    vllm_server_base_url: str | None = option(
        None, "vLLM server to sample on, such as http://node2:8000."
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, "Share of a card's memory that a colocated vLLM takes."
    )
    max_prompt_length: int = option(512, "Longest prompt in tokens; a longer one is an error.")
    max_completion_length: int = option(53, "Most tokens sampled for a completion.")
    temperature: float = option(1.0, "Temperature of sampling, and of every log-probability.")
    stop_token: str | None = option(
        None,
        "The one token that ends a completion, eos: the tokenizer's; default: each eos "
        "token of the model.",
    )
    missing_eos_penalty: float | None = option(
        None, "Subtracted from the score of a completion that was cut off."
    )

    # Environment.
    context: str = option(
        "all",
        "Of an episode with an environment, all: the whole conversation stays in view; last: each "
        "turn is a row whose prompt is the newest observation, and batches count turns.",
        choices=["all", "last"],
    )
    max_turns: int = option(16, "Most turns of an episode with an environment.")
    max_episode_length: int | None = option(
        None, "Most tokens of a conversation with an environment; default: the model's context."
    )
    num_environments: int | None = option(
        None,
        "With context=last, episodes that are played side by side; default: 32, or as many as "
        "divide rollout_batch_size.",
    )

    # Reward.
    reward_weights: list[float] | None = option(
        None, "Weight of each reward function; default: 1 each."
    )
    reward_clip: float | None = option(None, "Clip each score to plus or minus this value.")
    normalize_rewards: bool = option(False, "Divide scores by their running standard deviation.")
    whiten_rewards: bool = option(False, "Scale token rewards to variance 1, keeping their mean.")
    kl_coef: float = option(0.05, "Weight of the KL to the reference in the reward.")
    kl_estimator: str = option("k1", "Estimator of the KL in the reward.", choices=["k1", "k3"])
    target_kl: float | None = option(
        None, "KL (nats per completion) that an adaptive kl_coef steers to."
    )
    kl_horizon: int = option(10_000, "Episodes over which an adaptive kl_coef reacts.")

    cost_limit: float | None = option(
        None, "What the mean cost of a completion may be, by cost_funcs: a weight is steered to it."
    )

    # People.
    feedback: str | None = option(
        None,
        "Feedback project in which people rate completions while the policy learns; their ratings "
        "are the rewards of these, and teach the reward model.",
    )
    feedback_episodes: int = option(16, "Completions of a rollout that are put before people.")
    feedback_timeout: float = option(600.0, "Seconds that a rollout waits for their ratings.")

    # Objective.
    gamma: float = option(1.0, "Discount of rewards, per token; with an environment, per turn.")
    gamma_per: str = option(
        "turn",
        "With an environment, what gamma discounts: each turn, or each token.",
        choices=["turn", "token"],
    )
    lam: float = option(0.95, "Lambda of the advantage estimation.")
    # Nearer to known optima than 0.2: docs/log.md.
    cliprange: float = option(0.15, "Clip range of the policy ratio.")
    max_approx_kl: float | None = option(
        1.0,
        "Approximate KL to the sampling policy, nats per completion (of longer ones per 64 "
        "tokens), beyond which a rollout moves the policy no more; null: no bound.",
    )
    cliprange_value: float | None = option(
        None, "Clip range of the values, in standard deviations of the returns."
    )
    # More moves a shared trunk for the values' sake: docs/log.md.
    vf_coef: float = option(0.1, "Weight of the value loss, which is in variances of the returns.")
    entropy_coef: float = option(0.0, "Weight of the entropy bonus.")

    # Critic and policy.
    critic: str | None = option(
        None,
        "head: a value head on the policy's trunk; adapter: an adapter of its own on "
        "the policy's base; model: a model of its own. Default: adapter under LoRA, else head.",
        choices=["head", "adapter", "model"],
    )
    critic_model_name_or_path: str | None = option(
        None,
        "Where a critic of its own starts from, such as a reward run; default: the "
        "policy's trunk with a zero head.",
    )
    share_backbone: bool = option(True, "Under LoRA, put reward adapters on the policy's base.")
    critic_learning_rate: float | None = option(
        None, "Learning rate of the critic; default: three times learning_rate."
    )
    critic_warmup_rollouts: int = option(0, "Rollouts at the start that train the critic alone.")
    trust_remote_code: bool = option(
        False, "Run the code that lies beside models and tokenizers; read it first."
    )
    disable_dropout: bool = option(True, "Set every dropout of policy, critic and reward to 0.")
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None, "Further arguments of the chat template."
    )
    log_completions: bool = option(False, "Keep a few completions of every logged rollout.")

    def __post_init__(self) -> None:
        """Check ranges and derive accumulation, number of steps and logging interval."""
        self._check_ranges()
        if self.vllm_server_base_url is not None:  # all that has to be said for it
            self.sampler, self.vllm_mode = self.sampler or "vllm", self.vllm_mode or "server"
            asks = (self.sampler, self.vllm_mode) == ("vllm", "server")
            reason = "wants sampler=vllm and vllm_mode=server; leave both out"
            self._refuse_unless(asks, "vllm_server_base_url", reason)
        self.vllm_mode = self.vllm_mode or "colocate"
        given_accumulation = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        self.remove_unused_columns = False
        # The stream knows where it stood; skipping batches would make the rollouts again.
        self.ignore_data_skip = True
        self._refuse_other_lengths()
        if self.num_environments is None:
            self.num_environments = math.gcd(self.rollout_batch_size, NUM_ENVIRONMENTS)
        self.max_steps = self.num_rollouts * self.steps_per_rollout
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        if self.load_best_model_at_end and getattr(self, "metric_for_best_model", None) is None:
            self.metric_for_best_model = "scores"  # Trainer's default is a loss, and there is none
        super().__post_init__()
        refuse_in_engine(self)
        self.gradient_accumulation_steps = self._derived_accumulation()
        if given_accumulation not in (None, self.gradient_accumulation_steps):
            raise UserError(
                f"gradient_accumulation_steps={given_accumulation} is not the "
                f"{self.gradient_accumulation_steps} that follows from the batch sizes; "
                "leave it out."
            )

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that one rollout is used for."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def num_rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.total_episodes // self.rollout_batch_size

    def _derived_accumulation(self) -> int:
        mini_batch, world = self.rollout_batch_size // self.num_mini_batches, self.world_size
        if mini_batch % world:
            raise UserError(
                f"rollout_batch_size / num_mini_batches = {mini_batch} does not divide among "
                f"{world} processes; use a multiple of {world}."
            )
        share, micro_batch = mini_batch // world, self.per_device_train_batch_size
        if share % micro_batch:
            raise UserError(
                f"per_device_train_batch_size={micro_batch} does not divide the {share} episodes "
                "of a mini-batch that a process has (rollout_batch_size / num_mini_batches / "
                f"processes); use {math.gcd(share, micro_batch)} or {share}."
            )
        return share // micro_batch

    def _refuse_other_lengths(self) -> None:
        # The length of a run has one key here; Trainer's two others would be ignored.
        derived = self.num_rollouts * self.steps_per_rollout
        for key, unused in (("max_steps", (-1, derived)), ("num_train_epochs", (3.0,))):
            reason = "does not set the length of a PPO run; leave it out and set total_episodes"
            self._refuse_unless(getattr(self, key) in unused, key, reason)

    def _check_ranges(self) -> None:
        for field in fields(self):
            words = out_of_range(field.name, getattr(self, field.name))
            self._refuse_unless(words is None, field.name, f"must be {words}")
        self._refuse_unless(self.temperature > 0, "temperature", "must be above 0")
        for key, divisor in MULTIPLES:
            if getattr(self, divisor) is None:
                continue
            remainder = getattr(self, key) % getattr(self, divisor)
            reason = f"is no multiple of {divisor}={getattr(self, divisor)}; change one of them"
            self._refuse_unless(remainder == 0, key, reason)
        biased = "in the reward biases the gradient of the KL; use k1"
        self._refuse_unless(self.kl_estimator == "k1", "kl_estimator", biased)
        named = self.critic_model_name_or_path
        reason = f"needs critic=model or critic=adapter, not critic={self.critic}"
        has_place = named is None or self.critic in (None, "adapter", "model")
        self._refuse_unless(has_place, "critic_model_name_or_path", reason)

    def _refuse_unless(self, is_right: bool, key: str, reason: str) -> None:
        if not is_right:
            raise UserError(f"{key}={getattr(self, key)} {reason}.")
