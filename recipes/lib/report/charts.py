"""Which charts a recipe's page shows, by the names that are logged, and how each one is read."""

from dataclasses import replace

from recipes.lib.report.curves import Curve

ENTROPY = Curve(
    "entropy",
    "Entropy",
    "nats per token",
    (("entropy", "policy"),),
    "How open the choice of the next token still is: a gentle fall is normal, a fall to near 0 "
    "means that every prompt gets the same text, a rise means noise.",
)
LENGTH = Curve(
    "length",
    "Completion length",
    "tokens",
    (
        ("completions/mean_length", "all"),
        ("completions/mean_terminated_length", "ended by themselves"),
    ),
    "Should settle; a drift to the limit or to almost nothing usually means that the reward "
    "pays for length and not for content.",
)
GROUPS = (
    Curve(
        "reward",
        "Reward",
        "mean score per completion",
        (("reward", "training"), ("eval_reward", "held-out prompts")),
        "The weighted sum of the rewards: it should rise and level off; a held-out line that falls "
        "while the other rises means that the policy learns its prompts by heart.",
    ),
    Curve(
        "kl",
        "Distance from the start",
        "KL, nats per token",
        (("kl", "KL"),),
        "Starts near 0 and should grow slowly; a sudden jump means that the policy leaves the "
        "language it came from. Times the length it is the KL of a completion.",
    ),
    Curve(
        "signal",
        "Prompts without a signal",
        "share of prompts",
        (("frac_reward_zero_std", "all completions alike"),),
        "Where all completions of a prompt score the same nothing is learned from it: near 1 the "
        "task is too easy or too hard for this policy, or the reward too coarse.",
    ),
    Curve(
        "spread",
        "Spread of the reward",
        "standard deviation of the score",
        (("reward_std", "training"),),
        "How different completions still score: it usually shrinks as the policy improves; close "
        "to 0 from the start means that there is nothing to choose between.",
    ),
    ENTROPY,
    Curve(
        "clip",
        "Clip fraction",
        "share of ratios",
        (("clip_ratio/region_mean", "clipped"),),
        "How much of the update was held back: 0 where every generation serves one step only, up "
        "to about 0.2 is usual where it serves several; much more means steps that are too large.",
    ),
    LENGTH,
    Curve(
        "cut",
        "Cut off at the limit",
        "share of completions",
        (("completions/clipped_ratio", "reached the limit"),),
        "Completions that did not end on their own: near 0 is healthy for a chat model; a rise "
        "means that the policy rambles, or that the limit is too low for the task.",
    ),
    Curve(
        "time",
        "Time per step",
        "seconds",
        (("step_time", "a step"),),
        "Mean time of a pass over one micro-batch, sampling included: growing time follows growing "
        "length.",
    ),
)
REWARDS = Curve(
    "implicit",
    "Implicit rewards",
    "beta times nats",
    (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
    "How much likelier than at the start each side has become: chosen should lie above rejected; "
    "both falling is common, and a chosen line far below 0 means that good texts are lost too.",
)
MARGIN = Curve(
    "margin",
    "Margin during training",
    "implicit reward of chosen less rejected",
    (("rewards/margins", "training"), ("eval_rewards/margins", "held out")),
    "Starts at 0 and should grow and level off; growth without end, with accuracy flat, means that "
    "the policy only moves further away from where it began.",
)
DPO = (
    Curve(
        "accuracy",
        "Accuracy",
        "share of pairs in the right order",
        (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out")),
        "Should rise from a coin's 0.5 and level off near the ceiling that noise in the labels "
        "sets; a training line far above the held-out one means learning by heart.",
        levels=(("accuracy", "test pairs, end", 3), ("accuracy_ceiling", "ceiling", 0)),
    ),
    MARGIN,
    REWARDS,
    Curve(
        "preference-loss",
        "Loss",
        "nats per pair",
        (("loss", "training"), ("eval_loss", "held out")),
        "With the default loss it starts at 0.69, the loss of guessing, and should fall and "
        "flatten; a held-out line that turns upwards means overconfidence.",
    ),
    Curve(
        "logps",
        "Log-probability of the completions",
        "nats per completion",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        "The loss sees only the difference of the two: if chosen falls with rejected, what the "
        "policy writes instead is neither; read some of its completions.",
    ),
)
KTO = (
    MARGIN,
    REWARDS,
    Curve(
        "kto-loss",
        "Loss",
        "mean of 1 - sigmoid",
        (("loss", "training"), ("eval_loss", "held out")),
        "Starts at 0.5 times the weights and should fall and flatten; a held-out line that turns "
        "upwards means learning by heart.",
    ),
    Curve(
        "kl",
        "Reference point",
        "KL estimate, nats per completion",
        (("kl", "KL"),),
        "From completions of other prompts, cut at 0: desirable texts have to beat it and "
        "undesirable ones stay under it; 0 throughout means that unfitting texts only fell.",
    ),
)


PPO = (
    Curve(
        "reward",
        "Reward",
        "mean score per completion",
        (("objective/scores", "score"), ("objective/rlhf_reward", "score less KL penalty")),
        "Both lines should rise and level off; a score that climbs while the penalised line falls "
        "pays for every point with more drift than it is worth.",
    ),
    Curve(
        "turns",
        "Turns",
        "turns per episode",
        (("environment/turns", "turns"),),
        "How long episodes in the environment are: shorter where the way to the end is found, "
        "longer where it pays to stay.",
    ),
    Curve(
        "cut-off",
        "Episodes that a limit cut off",
        "share of episodes",
        (("environment/cut_fraction", "cut off"),),
        "Episodes that did not end by themselves: should fall where there is an end to be reached, "
        "and rise towards 1 where staying is the task.",
    ),
    Curve(
        "kl",
        "Distance from the reference",
        "KL, nats per completion",
        (("objective/kl", "KL"), ("eval_kl", "held-out prompts")),
        "Starts at 0 and should grow steadily and then bend; a sudden jump or ever faster growth "
        "means that the policy leaves the language it came from.",
    ),
    replace(ENTROPY, lines=(("policy/entropy_avg", "policy"),)),
    Curve(
        "clip",
        "Clip fraction",
        "share of tokens",
        (("policy/clipfrac_avg", "policy"), ("val/clipfrac_avg", "value")),
        "Tokens whose update was held back: up to about 0.2 is usual for the policy, much more "
        "means steps that are too large, a constant 0 means that hardly anything moves.",
    ),
    Curve(
        "value-loss",
        "Value loss",
        "squared error in variances of the returns",
        (("loss/value_avg", "value loss"),),
        "Error of the critic's forecast: it should fall and stay low; growth means that the critic "
        "no longer follows the policy and the advantages are noise.",
    ),
    replace(
        LENGTH,
        lines=(
            ("completions/mean_length", "mean length"),
            ("eval_completions/mean_length", "held out"),
            ("objective/completion_length", "mean length"),  # as earlier runs call them
            ("eval_completion_length", "held out"),
        ),
    ),
    Curve(
        "held-out",
        "Reward on held-out prompts",
        "mean score per completion",
        (("eval_scores", "sampled"), ("eval_greedy_scores", "most probable text")),
        "Prompts that training never sees: it should follow the reward above; a fall while that "
        "one rises means that the policy learns its prompts by heart.",
    ),
    Curve(
        "explained",
        "Explained variance",
        "share of the returns' variance",
        (("val/explained_variance", "critic"),),
        "How much of the outcome the critic foresees: it should rise towards 1; below 0 it does "
        "worse than a constant guess.",
    ),
    Curve(
        "eos",
        "Ended by themselves",
        "share of completions",
        (("objective/eos_fraction", "ended before the limit"),),
        "Completions that stop on their own: near 1 is healthy for a chat model; a fall means that "
        "the policy rambles until it is cut off.",
    ),
    Curve(
        "time",
        "Time per rollout",
        "seconds",
        (("time/sampling", "sampling"), ("time/scoring", "scoring"), ("time/training", "training")),
        "Where the time goes: flat lines are normal; growing sampling time follows growing length.",
    ),
)

OVER_KL = Curve(
    "over-kl",
    "Gain over the start",
    "share of the highest gain",
    (),
    "All lines should rise together; one that falls while the rewards of the run still rise says "
    "from which KL on these are fooled.",
    axis=("kl", "KL from the start, nats per completion"),
)
LOSS = Curve(
    "loss",
    "Loss",
    "nats per token",
    (("loss", "training"), ("eval_loss", "held out")),
    "Both lines should fall and flatten; a held-out line that turns upwards while training still "
    "falls means that the model learns its examples by heart.",
)
TOKEN_ACCURACY = Curve(
    "token-accuracy",
    "Next token right",
    "share of tokens",
    (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held out")),
    "How often the likeliest token is the true one: it should rise with the fall of the loss; a "
    "gap between the lines means learning by heart.",
)
SFT = (LOSS, TOKEN_ACCURACY)

REWARD = (
    replace(
        DPO[0],
        lines=(("accuracy", "training"), ("eval_accuracy", "held out")),
        levels=(
            ("accuracy_ceiling", "ceiling", 0),
            ("accuracy_bag_of_words", "bag of words", 3),
            ("accuracy_frozen_features", "frozen features", 3),
        ),
    ),
    Curve(
        "reward-loss",
        "Loss",
        "nats per pair",
        (("loss", "training"), ("eval_loss", "held out")),
        "Starts near 0.69, the loss of guessing, and should fall and flatten; a held-out line that "
        "turns upwards means overconfidence.",
    ),
    Curve(
        "margin",
        "Margin during training",
        "score of chosen less rejected",
        (("margin", "training"), ("eval_margin", "held out")),
        "Should grow and level off; growth without end, with accuracy flat, means that the scores "
        "only become louder.",
    ),
)
