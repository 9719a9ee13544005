"""What a run will take in memory, computed from shapes alone: no weight is loaded."""
