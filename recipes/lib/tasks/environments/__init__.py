"""Worlds of several turns: classes with `reset(**row)` and `step(text)` (docs/environments.md)."""
