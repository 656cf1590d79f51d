"""Slots: the model store, batching, runtimes, and the service behind the link."""
