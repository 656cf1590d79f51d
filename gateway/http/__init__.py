"""The HTTP listeners."""
