"""The configuration as validated models."""
