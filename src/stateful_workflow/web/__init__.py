"""Pages and endpoints for people's browsers."""
