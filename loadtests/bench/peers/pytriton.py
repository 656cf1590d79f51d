# /// script
# requires-python = ">=3.11,<=3.11.2"
# dependencies = ["nvidia-pytriton==0.7.0", "numpy==1.26.4", "onnxruntime", "orjson"]
# ///
"""The benchmark's model behind Triton with its Python backend, which ends at Python 3.11.2."""

from __future__ import annotations

import os
from typing import Any

from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import (  # type: ignore[import-not-found]
    DynamicBatcher,
    ModelConfig,
    Tensor,
)
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from loadtests.bench.peers.onnx_model import ROWS, OnnxModel

LOOPBACK = "127.0.0.1"
WAIT_US = 500


def main() -> None:
    model = OnnxModel()

    @batch  # type: ignore[untyped-decorator]
    def infer(**inputs: Any) -> dict[str, Any]:
        return {model.output: model.run(inputs[model.name])}

    http, grpc, metrics = (int(port) for port in os.environ["BENCH_PORTS"].split(","))
    folder = os.environ["BENCH_FOLDER"]
    os.environ["PYTRITON_HOME"] = folder
    config = TritonConfig(
        http_address=LOOPBACK,
        http_port=http,
        grpc_address=LOOPBACK,
        grpc_port=grpc,
        metrics_address=LOOPBACK,
        metrics_port=metrics,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=WAIT_US)
    with Triton(config=config, workspace=os.path.join(folder, str(grpc))) as triton:
        triton.bind(
            model_name=os.environ["BENCH_NAME"],
            infer_func=infer,
            inputs=[Tensor(name=model.name, dtype=model.dtype, shape=model.shape)],
            outputs=[Tensor(name=model.output, dtype=model.answer_dtype, shape=model.answer_shape)],
            config=ModelConfig(max_batch_size=ROWS, batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()
