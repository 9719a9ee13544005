"""What stands around every recipe: the way in, the guard, the last words."""
