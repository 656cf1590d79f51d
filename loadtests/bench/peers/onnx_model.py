"""The model behind every peer, in one thread, and JSON or raw numbers where users decode them.

BENCH_MODEL names the ONNX file, BENCH_OUTPUT its output, BENCH_FORM the form of the bodies and
BENCH_ROWS the largest batch.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from numpy.typing import NDArray

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
ROWS = int(os.environ.get("BENCH_ROWS", "64"))
"""The largest batch."""

RAW = os.environ.get("BENCH_FORM") == "raw"
"""Whether bodies and answers are a row's numbers alone, and not TensorFlow Serving's JSON."""


class OnnxModel:
    """A model with one input, of any number of rows, and the output that is asked for."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.output = os.environ["BENCH_OUTPUT"]
        [taken] = self._session.get_inputs()
        [given] = [each for each in self._session.get_outputs() if each.name == self.output]
        self.name, self.shape, self.dtype = taken.name, taken.shape[1:], DTYPES[taken.type]
        self.answer_shape, self.answer_dtype = given.shape[1:], DTYPES[given.type]

    def run(self, rows: NDArray[Any]) -> NDArray[Any]:
        [answer] = self._session.run([self.output], {self.name: rows})
        return np.asarray(answer)

    def decode(self, body: bytes | memoryview) -> NDArray[Any]:
        """The one row of a body."""
        if RAW:
            return np.frombuffer(body, self.dtype).reshape(self.shape)
        return np.array(orjson.loads(body)["instances"][0], dtype=self.dtype)

    def encode(self, row: NDArray[Any]) -> bytes:
        """The answer to one row."""
        if RAW:
            return row.tobytes()
        return orjson.dumps({"predictions": [row]}, option=orjson.OPT_SERIALIZE_NUMPY)
