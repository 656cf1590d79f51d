"""Fuzzers: valid inputs, changed at random from a seed, and what has to hold for each of them."""
