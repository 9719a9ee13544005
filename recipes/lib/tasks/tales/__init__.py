"""The quickstart's small world: animal tales, and the gold score that no training stage reads."""

from recipes.lib.tasks.tales.gold import gold_score, gold_scores

__all__ = ["gold_score", "gold_scores"]
