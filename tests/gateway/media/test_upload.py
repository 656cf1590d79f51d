"""Forms, however they are cut into pieces, and options, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.media.options import (
    encode_options,
    json_options,
    parameter_options,
    query_options,
    read_options,
)
from gateway.media.upload import MAX_OPTIONS_BYTES, FormReader
from headrace.config.args import JobsConfig, MediaConfig
from headrace.config.sharding import ProcessOptions
from headrace.errors import InvalidArgument

TYPE = "multipart/form-data; boundary=line"
OPTIONS = b'Content-Disposition: form-data; name="options"\r\n\r\n{"top_k": 3}\r\n'
HEADERS = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n'
FILE = HEADERS + b"Content-Type: image/png\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300).map(lambda b: b.replace(b"line", b"")),
    first=st.booleans(),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_a_form_is_the_same_in_any_pieces(content: bytes, first: bool, sizes: list[int]) -> None:
    file = FILE + content + b"\r\n"
    parts = [file, OPTIONS] if first else [OPTIONS, file]
    body = b"".join(b"--line\r\n" + part for part in parts) + b"--line--\r\n"
    reader, found, at, turn = FormReader(TYPE), b"", 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        found += b"".join(reader.read(body[at : at + size]))
        at, turn = at + size, turn + 1
    reader.finish()
    assert found == content and reader.options == b'{"top_k": 3}'
    assert (reader.file_type, reader.file_name) == ("image/png", "a.png")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"--line\r\n" + OPTIONS + b"--line\r\n" + OPTIONS, "two parts 'options'"),
        (b"--line\r\n\r\n1\r\n--line--\r\n", "a part ''"),
        (b"--line\r\n" + b"x: 1\r\n" * 20, "malformed"),
        (b"--line\r\n" + b"x: " + b"1" * 9000 + b"\r\n", "malformed"),
        (b"--line\r\n" + OPTIONS[:52] + b" " * (MAX_OPTIONS_BYTES + 1), "over 65536 bytes"),
    ],
)
def test_what_is_no_such_form(body: bytes, words: str) -> None:
    reader = FormReader(TYPE)
    with pytest.raises(InvalidArgument, match=words):
        reader.read(body)


def test_a_boundary_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        FormReader(f"multipart/form-data; boundary={'x' * 300}")


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        ProcessOptions,
        threshold=st.none() | st.floats(0, 1),
        top_k=st.none() | st.integers(1, 100),
        classes=st.none() | st.lists(st.text() | st.integers(0, 99), min_size=1, max_size=3),
        partial=st.sampled_from(["allow", "refuse"]),
    )
)
def test_options_survive_their_text(options: ProcessOptions) -> None:
    assert read_options(json_options(encode_options(options), "it")) == options


def test_later_sources_go_first() -> None:
    options = read_options(query_options([("top_k", "3"), ("fps", "2")]), {"top_k": 4})
    assert (options.top_k, options.fps) == (4, 2.0)


def test_parameters_that_are_no_options_are_left_alone() -> None:
    parameters: dict[str, Any] = {"timeout": 5, "classes": "cat, 3", "threshold": 0.5}
    assert parameter_options(parameters) == {"classes": ["cat", 3], "threshold": 0.5}


def test_the_config_in_short() -> None:
    assert MediaConfig().enabled and not MediaConfig(replicas=0).enabled
    config = MediaConfig.model_validate({"spool_memory": "8MiB", "jobs": {"keep_s": 60}})
    assert config.spool_memory == 8 * 1024**2 and config.jobs == JobsConfig(keep_s=60)
