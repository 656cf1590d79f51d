# /// script
# dependencies = ["bentoml==1.4.40", "numpy", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind BentoML with adaptive batching."""

from __future__ import annotations

import os
import sys

import bentoml  # type: ignore[import-not-found]
import numpy as np

from loadtests.bench.peers.onnx_model import ROWS, OnnxModel

LATENCY_MS = 1000
"""Beyond it BentoML refuses requests; with 50 ms it refused some of 64 in flight."""


@bentoml.service(workers=1, traffic={"timeout": 30})
class Model:
    """BentoML parses and writes the JSON itself."""

    def __init__(self) -> None:
        self._model = OnnxModel()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True, max_batch_size=ROWS, max_latency_ms=LATENCY_MS
    )
    def predict(self, instances: np.ndarray) -> np.ndarray:
        return self._model.run(np.asarray(instances, dtype=self._model.dtype))


def main() -> None:
    port = os.environ["BENCH_PORTS"].split(",")[0]
    os.environ |= {"BENTOML_HOME": os.environ["BENCH_FOLDER"], "BENTOML_DO_NOT_TRACK": "True"}
    service = "loadtests.bench.peers.bentoml:Model"
    command = [sys.executable, "-m", "bentoml", "serve", service]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", port])


if __name__ == "__main__":
    main()
