"""Environments: worlds that answer what a policy writes."""
