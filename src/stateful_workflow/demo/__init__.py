"""The demo: a token rotates through a real tree of workflows while they call a real API."""
