"""The elastic pool, measured and simulated."""
