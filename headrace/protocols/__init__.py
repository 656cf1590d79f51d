"""Codecs between bytes and tensors; they do no I/O."""
