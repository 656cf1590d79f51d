"""Shared memory regions of clients on this machine."""
