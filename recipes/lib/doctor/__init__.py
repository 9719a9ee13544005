"""The doctor: is a reward model what it is taken for, before a policy learns from it."""
