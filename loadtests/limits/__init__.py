"""Isolation from floods, and callers of all tiers."""
