"""A day of a started system in some minutes: steady load, and everything that happens to it."""
