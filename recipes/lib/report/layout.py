"""Which numbers a page puts in large letters, and what it calls runs and stages."""

TITLES = {
    "base": "Base model",
    "sft": "Supervised fine-tuning",
    "feedback": "Feedback",
    "reward": "Reward model",
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "kto": "KTO",
    "evaluate": "Evaluation",
}

# Each tile: its key in summary.json, then the keys of the numbers it is compared with.
RUN_TILES = [
    ("win_rate", "win_rate_ci95"),
    ("score", "score_baseline"),
    ("scores", "first_scores"),
    ("kl",),
    ("kl_per_token",),
    ("rlhf_reward",),
    ("completion_length",),
    ("accuracy", "accuracy_ceiling"),
    ("accuracy_bag_of_words",),
    ("auc",),
    ("margin",),
    ("perplexity", "base_perplexity"),
    ("eval_loss", "train_loss"),
    ("num_pairs", "num_test"),
    ("mean_score",),
    ("num_prompts",),
    ("num_texts",),
    ("num_parameters",),
    ("episodes",),
    ("seconds",),
]
QUICKSTART_TILES = [
    ("win_rate", "win_rate_ci95"),
    ("gold_ppo", "gold_sft"),
    ("kl",),
    ("reward_accuracy", "reward_accuracy_ceiling"),
    ("sft_perplexity", "base_perplexity"),
    ("total_seconds",),
    ("peak_rss_mb",),
]
QUICKSTART_LABELS = {"win_rate": "Win rate of PPO over SFT", "kl": "KL from the SFT model"}

# Stages in their order, each with the number that stands for it and what it is called there.
STAGES = {
    "base": ("base_perplexity", "perplexity"),
    "sft": ("sft_perplexity", "perplexity"),
    "feedback": ("reward_accuracy_ceiling", "best accuracy its noise allows"),
    "reward": ("reward_accuracy", "accuracy"),
    "ppo": ("kl", "KL"),
    "evaluate": ("win_rate", "win rate of PPO over SFT"),
}
