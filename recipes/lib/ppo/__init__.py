"""The PPO trainer: configuration, rollouts, objective, loop."""
