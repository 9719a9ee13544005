"""What two or more recipes need, one subject per module."""
