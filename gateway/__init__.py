"""The front door: listeners, admission, predictions, uploads."""

import headrace  # noqa: F401  Before what may be compiled is imported.
