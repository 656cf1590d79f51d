# /// script
# dependencies = ["mosec==0.9.8", "numpy", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind mosec."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from mosec import Server, Worker

from loadtests.bench.peers.onnx_model import ROWS, OnnxModel

WAIT_MS = 1


class Model(Worker):  # type: ignore[misc]
    """Decodes, batches and runs as mosec's documentation shows."""

    def __init__(self) -> None:
        self._model = OnnxModel()

    def deserialize(self, data: bytes) -> Any:
        return self._model.decode(data)

    def serialize(self, data: Any) -> bytes:
        return self._model.encode(data)

    def forward(self, data: Any) -> Any:
        """One row, or a list of rows when mosec batches."""
        if ROWS == 1:
            return self._model.run(data[np.newaxis])[0]
        return list(self._model.run(np.stack(data)))


def main() -> None:
    port = os.environ["BENCH_PORTS"].split(",")[0]
    sockets = os.path.join(os.environ["BENCH_FOLDER"], port)
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--path", sockets]
    server = Server()
    if ROWS == 1:
        server.append_worker(Model, num=1)
    else:
        server.append_worker(Model, num=1, max_batch_size=ROWS, max_wait_time=WAIT_MS)
    server.run()


if __name__ == "__main__":
    main()
