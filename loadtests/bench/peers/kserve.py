# /// script
# dependencies = ["kserve==0.21.0", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind KServe's model server, which does not batch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, ModelServer
from kserve import Model as KServeModel

from loadtests.bench.peers.onnx_model import OnnxModel


class Model(KServeModel):  # type: ignore[misc]
    """KServe parses and writes JSON, binary tensors and the messages of gRPC."""

    def __init__(self) -> None:
        super().__init__(os.environ["BENCH_NAME"])
        self._model = OnnxModel()
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if not isinstance(payload, InferRequest):
            rows = np.array(payload["instances"], dtype=self._model.dtype)
            return {"predictions": self._model.run(rows).tolist()}
        answer = self._model.run(payload.inputs[0].as_numpy())
        output = InferOutput(name=self._model.output, shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return InferResponse(
            response_id=payload.id or "",
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=True,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    ports = [int(port) for port in os.environ["BENCH_PORTS"].split(",")]
    ModelServer(http_port=ports[0], grpc_port=ports[1], workers=1).start([Model()])
