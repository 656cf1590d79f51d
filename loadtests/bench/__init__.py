"""The benchmark against peers, and soak tests."""
