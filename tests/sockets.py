"""Sockets for listeners that share them with nobody."""

from __future__ import annotations

import socket

from headrace.config.args import split_address


def bound(address: str = "127.0.0.1:0") -> socket.socket:
    """A bound socket that does not listen yet."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(split_address(address))
    opened.setblocking(False)
    return opened
