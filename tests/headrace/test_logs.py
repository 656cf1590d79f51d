from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.logs import (
    MAX_TEXT,
    REDACTED,
    new_request_id,
    redact,
    valid_request_id,
    valid_traceparent,
)

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00f067aa0ba902b7"


def log_lines(script: str) -> list[dict[str, Any]]:
    """What a fresh process writes to stderr, line by line."""
    head = "import logging, structlog\nfrom headrace.logs import configure\n"
    result = subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_lines_are_json_with_the_fixed_fields_first() -> None:
    [line] = log_lines(
        "configure('info', 'slot')\n"
        "log = structlog.get_logger()\n"
        "log.debug('hidden')\n"
        "log.info('model ready', request_id='abc', model='digits', headers={'Token': 's3cret'})\n"
    )
    assert list(line)[:4] == ["time", "level", "event", "role"]
    assert (line["level"], line["event"], line["role"]) == ("info", "model ready", "slot")
    assert (line["request_id"], line["headers"]) == ("abc", {"Token": REDACTED})


def test_the_last_lines_are_kept_without_secrets_and_cut_short() -> None:
    lines = log_lines(
        "from headrace.logs import KEPT_CHARACTERS, KEPT_LINES, recent_lines\n"
        "configure('info', 'slot')\n"
        "log = structlog.get_logger()\n"
        "for number in range(KEPT_LINES + 5):\n"
        "    log.info('line', number=number, token='s3cret', text='x' * 1000)\n"
        "log.debug('hidden')\n"
        "kept = recent_lines()\n"
        "assert len(kept) == KEPT_LINES and '\"number\":5' in kept[0], kept\n"
        "log.info('kept', longest=max(map(len, kept)), limit=KEPT_CHARACTERS,\n"
        "         bare='s3cret' in ''.join(kept))\n"
    )
    assert lines[-1]["longest"] == lines[-1]["limit"] + 1 and not lines[-1]["bare"]


def test_exceptions_and_lines_of_libraries_have_the_same_form() -> None:
    failed, foreign = log_lines(
        "configure('warning', 'gateway')\n"
        "try:\n    1 / 0\n"
        "except ZeroDivisionError:\n    structlog.get_logger().exception('failed')\n"
        "logging.getLogger('uvicorn.error').info('hidden')\n"
        "logging.getLogger('uvicorn.error').warning('port %d', 8080)\n"
    )
    assert "ZeroDivisionError" in failed["exception"]
    assert (foreign["event"], foreign["level"], foreign["role"]) == (
        "port 8080",
        "warning",
        "gateway",
    )


def test_a_caller_s_malformed_forms_write_no_lines() -> None:
    lines = log_lines(
        "configure('debug', 'gateway')\n"
        "from gateway.media.upload import FormReader\n"
        "try: FormReader('multipart/form-data; boundary=x').read(b'no form')\n"
        "except Exception as error: logging.getLogger('uvicorn').warning(str(error))\n"
    )
    assert ["malformed" in line["event"] for line in lines] == [True]


def test_configuring_twice_does_not_double_the_lines() -> None:
    lines = log_lines(
        "configure('info', 'pool'); configure('info', 'pool')\n"
        "logging.getLogger('grpc').warning('once')\n"
    )
    assert [line["event"] for line in lines] == ["once"]


@pytest.mark.parametrize("key", ["authorization", "X-Api-Key", "token", "SECRET", "password"])
def test_secrets_are_redacted_at_any_depth(key: str) -> None:
    event = redact(None, "info", {key: "s3cret", "nested": [{key: b"s3cret"}], "event": "e"})
    assert event == {key: REDACTED, "nested": [{key: REDACTED}], "event": "e"}


def test_payloads_are_not_logged() -> None:
    event = {
        "body": b"1234",
        "view": memoryview(b"12"),
        "tensor": np.ones(3),
        "text": "x" * (MAX_TEXT + 1),
        "path": Path("models"),
        "error": ValueError("wrong"),
        "sizes": (1, 2.5, None, True),
    }
    clean = redact(None, "info", dict(event))
    assert clean.pop("text").endswith(f"({MAX_TEXT + 1} characters)")
    assert clean == {
        "body": "<4 bytes>",
        "view": "<2 bytes>",
        "tensor": "<ndarray>",
        "path": "models",
        "error": "wrong",
        "sizes": [1, 2.5, None, True],
    }


def test_request_ids_are_distinct_and_valid() -> None:
    ids = {new_request_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert {len(value) for value in ids} == {16}
    assert all(valid_request_id(value.encode()) for value in ids)


def test_a_forked_process_makes_other_ids() -> None:
    script = (
        "import os\nfrom headrace.logs import new_request_id\n"
        "child = os.fork()\n"
        "if child: os.waitpid(child, 0)\n"
        "os.write(1, new_request_id().encode() + b'\\n')\n"
    )
    command = [sys.executable, "-c", script]
    ids = subprocess.run(command, capture_output=True, check=True, env=os.environ).stdout.split()
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"a", True),
        (b"~" * 128, True),
        (b"", False),
        (b"a" * 129, False),
        (b"a b", False),
        (b"a\n", False),
        (b"a\r\nSet-Cookie: x=1", False),
        (b"\x7f", False),
        ("é".encode(), False),
    ],
)
def test_request_ids_cannot_carry_headers(value: bytes, valid: bool) -> None:
    assert valid_request_id(value) is valid


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"00-%b-%b-01" % (TRACE, PARENT), True),
        (b"00-%b-%b-01-extra" % (TRACE, PARENT), False),
        (b"01-%b-%b-01-extra" % (TRACE, PARENT), True),
        (b"01-%b-%b-01extra" % (TRACE, PARENT), False),
        (b"ff-%b-%b-01" % (TRACE, PARENT), False),
        (b"00-%b-%b-01" % (TRACE.upper(), PARENT), False),
        (b"00-%b-%b-01" % (b"0" * 32, PARENT), False),
        (b"00-%b-%b-01" % (TRACE, b"0" * 16), False),
        (b"00-%b-%b-01\n" % (TRACE, PARENT), False),
        (b"00-%b-%b" % (TRACE, PARENT), False),
        (b"", False),
    ],
)
def test_traceparent_follows_the_standard(value: bytes, valid: bool) -> None:
    assert valid_traceparent(value) is valid


@given(st.binary(max_size=80))
def test_any_accepted_value_is_one_line_of_visible_text(value: bytes) -> None:
    for accepted in (valid_request_id(value), valid_traceparent(value)):
        assert not accepted or (value.isascii() and value.decode().isprintable())
        assert not accepted or b" " not in value
