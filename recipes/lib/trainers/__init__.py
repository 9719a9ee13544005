"""What is added to transformers' and TRL's trainers."""
