"""What is signed and encrypted, and the keys that do it; pure, nothing of Temporal."""
