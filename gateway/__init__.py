"""The front door: listeners, admission, predictions, uploads."""
