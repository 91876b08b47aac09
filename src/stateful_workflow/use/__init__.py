"""Tokens in a user's activity: opened, sent, kept from what it gives back."""
