"""Charts of the recipes on TRL's own trainers, by the names that those log."""

from recipes.lib.report.curves import Curve

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
    Curve(
        "entropy",
        "Entropy",
        "nats per token",
        (("entropy", "policy"),),
        "How open the choice of the next token still is: a gentle fall is normal, a fall to near 0 "
        "means that every prompt gets the same text, a rise means noise.",
    ),
    Curve(
        "clip",
        "Clip fraction",
        "share of ratios",
        (("clip_ratio/region_mean", "clipped"),),
        "How much of the update was held back: 0 where every generation serves one step only, up "
        "to about 0.2 is usual where it serves several; much more means steps that are too large.",
    ),
    Curve(
        "length",
        "Completion length",
        "tokens",
        (
            ("completions/mean_length", "all"),
            ("completions/mean_terminated_length", "ended by themselves"),
        ),
        "Should settle; a drift to the limit or to almost nothing usually means that the reward "
        "pays for length and not for content.",
    ),
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
