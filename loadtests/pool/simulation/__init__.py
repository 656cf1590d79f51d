"""The pool's own decisions on a simulated fleet, under a simulated clock."""
