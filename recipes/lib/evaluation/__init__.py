"""Did it get better: judges, win rates, scores of held-out pairs."""
