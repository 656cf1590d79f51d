"""The way of a request to a slot, both ends: queue, router, channel."""
