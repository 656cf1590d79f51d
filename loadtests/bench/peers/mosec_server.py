"""The benchmark's model behind mosec; runs in mosec's own environment.

BENCH_MODEL names the ONNX file, BENCH_ROWS the largest batch (1: no batching).
"""

from __future__ import annotations

import os
from typing import Any

import msgspec  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort
from mosec import Server, Worker

ROWS = int(os.environ["BENCH_ROWS"])
WAIT_MS = 1
ENCODER = msgspec.json.Encoder()


class Mlp(Worker):  # type: ignore[misc]
    """Decodes, batches and runs as fast as mosec's documentation knows how."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options)

    def deserialize(self, data: bytes) -> Any:
        """One row from `{"instances": [[...]]}`."""
        return np.array(msgspec.json.decode(data)["instances"][0], dtype=np.float32)

    def serialize(self, data: Any) -> bytes:
        """`{"predictions": [[...]]}`."""
        return bytes(ENCODER.encode({"predictions": [data]}))

    def forward(self, data: Any) -> Any:
        """One row, or a list of rows when mosec batches."""
        if ROWS == 1:
            return self.session.run(None, {"x": data[np.newaxis]})[0][0].tolist()
        return self.session.run(None, {"x": np.stack(data)})[0].tolist()


if __name__ == "__main__":
    server = Server()
    if ROWS == 1:
        server.append_worker(Mlp, num=1)
    else:
        server.append_worker(Mlp, num=1, max_batch_size=ROWS, max_wait_time=WAIT_MS)
    server.run()
