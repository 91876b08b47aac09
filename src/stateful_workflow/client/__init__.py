"""Set, rotate, read and walk a tree from outside."""
