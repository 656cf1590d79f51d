"""What the `headrace` command does: start, watch, ask and stop a system, from outside of it."""
