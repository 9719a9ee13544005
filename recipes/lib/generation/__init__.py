"""Completions of a policy: noise, decoding, caches, CUDA graphs."""
