"""The base that every package shares: errors, configuration, snapshot, keys, logs, metrics."""

from headrace.compiled import install

install()
