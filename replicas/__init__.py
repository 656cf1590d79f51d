"""Slots: the model store, batching, runtimes, and the service behind the link."""

import headrace  # noqa: F401  Before what may be compiled is imported.
