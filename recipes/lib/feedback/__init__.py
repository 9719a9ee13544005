"""Preferences: who prefers what, and the rows that keep it."""
