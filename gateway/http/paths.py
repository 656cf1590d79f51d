"""Paths of the application: escaped delimiters are text, never delimiters (RFC 3986, 2.2)."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor

_DELIMITER = re.compile(r"%(?=2F|3A|25)", re.IGNORECASE)


def routed_path(raw_path: bytes) -> str:
    """A request's path for routing: all of it decoded but `/`, `:` and `%`.

    So `a%2Fb` stays one segment, whose text `PathSegment` gives to the handler.
    """
    return unquote(_DELIMITER.sub("%25", raw_path.decode("latin-1")))


class PathSegment(Convertor[str]):
    """A part of a path between two slashes, as `{name:segment}` in a route."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        raise NotImplementedError("no path is made from a route")


register_url_convertor("segment", PathSegment())
