"""The benchmark's model behind Triton with its Python backend; runs in pytriton's environment.

BENCH_MODEL names the ONNX file, BENCH_ROWS the largest batch, BENCH_PORTS the ports for HTTP, gRPC
and metrics, BENCH_FOLDER a folder for its files.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import (  # type: ignore[import-not-found]
    DynamicBatcher,
    ModelConfig,
    Tensor,
)
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

LOOPBACK = "127.0.0.1"
WAIT_US = 500


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(os.environ["BENCH_MODEL"], options)

    @batch  # type: ignore[untyped-decorator]
    def infer(x: Any) -> dict[str, Any]:
        return {"y": session.run(None, {"x": x})[0]}

    http, grpc, metrics = (int(port) for port in os.environ["BENCH_PORTS"].split(","))
    config = TritonConfig(
        http_address=LOOPBACK,
        http_port=http,
        grpc_address=LOOPBACK,
        grpc_port=grpc,
        metrics_address=LOOPBACK,
        metrics_port=metrics,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=WAIT_US)
    with Triton(config=config, workspace=os.environ["BENCH_FOLDER"]) as triton:
        triton.bind(
            model_name="mlp",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(784,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=int(os.environ["BENCH_ROWS"]), batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()
