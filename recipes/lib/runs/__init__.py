"""The run folder: its files, its lock, its checkpoints, where it came from."""
