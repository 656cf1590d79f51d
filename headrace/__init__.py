"""What every part says: errors, configuration, snapshot, keys, logs, metrics."""
