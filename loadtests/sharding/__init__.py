"""Large pictures and videos over shards, measured and simulated."""
