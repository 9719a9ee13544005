"""Rewards of completions: functions and models, asked and added up."""
