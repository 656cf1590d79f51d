"""Isolation from floods, the cost of limits, many callers, tiers."""
