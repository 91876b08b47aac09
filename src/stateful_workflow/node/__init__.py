"""A workflow's part in a tree; runs in workflow code and is deterministic."""
