"""What stands on record of what happens to tokens."""
