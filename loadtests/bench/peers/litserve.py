# /// script
# dependencies = ["litserve==0.2.19", "numpy", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind LitServe, which takes JSON and forms."""

from __future__ import annotations

import os
from typing import Any

import litserve as ls  # type: ignore[import-not-found]
import numpy as np

from loadtests.bench.peers.onnx_model import ROWS, OnnxModel

WAIT_S = 0.001


class Api(ls.LitAPI):  # type: ignore[misc]
    """LitServe parses and writes the JSON itself."""

    def setup(self, device: str) -> None:
        self._model = OnnxModel()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """Without annotations: LitServe takes one for a type to validate the body with."""
        return np.array(request["instances"][0], dtype=self._model.dtype)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self._model.run(x)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return {"predictions": [output.tolist()]}


def main() -> None:
    api = Api(max_batch_size=ROWS, batch_timeout=WAIT_S)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    port = int(os.environ["BENCH_PORTS"].split(",")[0])
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
