"""Load tests and benchmarks; run from a checkout, never installed."""
