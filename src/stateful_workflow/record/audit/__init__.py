"""A file of events whose every change is seen: written, verified, reviewed."""
