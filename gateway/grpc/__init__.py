"""The gRPC listener: HTTP/2, calls, services."""
