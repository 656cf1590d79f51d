"""The HTTP/2 server of the gRPC listener (RFC 9113), and gRPC's wire format on it."""
