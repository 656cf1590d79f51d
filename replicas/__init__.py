"""Beside the model: slots, the server end of the link, batching and runtimes."""
