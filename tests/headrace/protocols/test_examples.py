"""Serialized `tf.Example` messages."""

from __future__ import annotations

import pytest

from headrace.protocols.examples import encode_example


def test_encode_example_writes_each_kind() -> None:
    assert encode_example({}) == b"\x0a\x00"
    assert encode_example({"a": [1, 300]}).hex(" ") == (
        "0a 0e 0a 0c 0a 01 61 12 07 1a 05 0a 03 01 ac 02"
    )
    assert encode_example({"a": [b"xy"]}).hex(" ") == "0a 0d 0a 0b 0a 01 61 12 06 0a 04 0a 02 78 79"
    assert encode_example({"a": [0.5]}).hex(" ") == (
        "0a 0f 0a 0d 0a 01 61 12 08 12 06 0a 04 00 00 00 3f"
    )
    assert encode_example({"a": []}).hex(" ") == "0a 07 0a 05 0a 01 61 12 00"


@pytest.mark.tensorflow
def test_tensorflow_reads_what_encode_example_wrote() -> None:
    import tensorflow as tf

    example = tf.train.Example.FromString(
        encode_example({"i": [1, -(2**63), 2**63 - 1], "f": [0.5, -1.0], "b": [b"", b"x" * 300]})
    )
    feature = example.features.feature
    assert list(feature["i"].int64_list.value) == [1, -(2**63), 2**63 - 1]
    assert list(feature["f"].float_list.value) == [0.5, -1.0]
    assert list(feature["b"].bytes_list.value) == [b"", b"x" * 300]
