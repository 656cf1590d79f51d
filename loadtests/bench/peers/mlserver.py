# /// script
# dependencies = ["mlserver==1.7.1", "uvloop<0.20", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind MLServer with adaptive batching in one worker."""

from __future__ import annotations

import asyncio
import os

from mlserver import MLModel, MLServer, ModelSettings, Settings  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from loadtests.bench.peers.onnx_model import ROWS, OnnxModel

WAIT_S = 0.001


class Model(MLModel):  # type: ignore[misc]
    """MLServer parses and writes both JSON and the messages of gRPC."""

    async def load(self) -> bool:
        self._model = OnnxModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(self._model.dtype, copy=False)
        output = NumpyCodec.encode_output(self._model.output, self._model.run(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve() -> None:
    http, grpc, metrics = (int(port) for port in os.environ["BENCH_PORTS"].split(","))
    settings = Settings(
        host="127.0.0.1",
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        metrics_dir=os.environ["BENCH_FOLDER"],
        parallel_workers=1,
        debug=False,
    )
    model = ModelSettings(
        name=os.environ["BENCH_NAME"],
        implementation="loadtests.bench.peers.mlserver.Model",
        max_batch_size=ROWS,
        max_batch_time=WAIT_S,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())
