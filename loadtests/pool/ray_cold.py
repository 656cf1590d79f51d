"""Plain Ray Serve with `min_replicas: 0` and one ONNX model of pictures, as its documents show it.

As a program it serves the model that BENCH_MODEL names on BENCH_PORT.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.headrace import COLD_HEADER, answers
from loadtests.processes import free_ports, running, wait_until

START_S = 90.0
STOP_S = 20.0
SHAPE = (1, 224, 224, 3)


@contextmanager
def ray_cold(folder: Path, model: Path) -> Iterator[str]:
    """Run it while the block lasts; its base URL. Raises `NotStarted`."""
    folder.mkdir()
    [port] = free_ports(1)
    environment = {
        "BENCH_MODEL": str(model),
        "BENCH_PORT": str(port),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # As fair as can be: the same niceness as Headrace's slots have.
        "RAY_worker_niceness": "0",
    }
    command = [sys.executable, "-m", "loadtests.pool.ray_cold"]
    with running(command, folder / "ray.log", environment, stop_s=STOP_S) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/-/healthz"), process, START_S)
        yield url


def serve_model() -> None:
    import numpy as np
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    scaling = AutoscalingConfig(
        min_replicas=0,
        initial_replicas=0,
        max_replicas=1,
        upscale_delay_s=0,
        downscale_delay_s=0.5,
        downscale_to_zero_delay_s=0.5,
        metrics_interval_s=0.1,
        look_back_period_s=0.5,
    )

    @serve.deployment(
        autoscaling_config=scaling,
        ray_actor_options={"num_cpus": 0.25},
        graceful_shutdown_wait_loop_s=0.1,
    )
    class Tagger:
        def __init__(self) -> None:
            import time

            import onnxruntime

            self._began_s: float | None = time.monotonic()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options)

        async def __call__(self, request: Request) -> JSONResponse:
            import time

            pixels = np.frombuffer(await request.body(), np.uint8).reshape(SHAPE)
            [scores] = self._session.run(["scores"], {"images": pixels})
            headers = {}  # as Headrace tells it, for the first answer of a replica only
            if self._began_s is not None:
                headers[COLD_HEADER] = str(round(1000 * (time.monotonic() - self._began_s)))
                self._began_s = None
            return JSONResponse({"best": int(scores[0].argmax())}, headers=headers)

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    application = Tagger.bind()  # type: ignore[attr-defined]
    serve.run(application, name="tagger", route_prefix="/")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    serve_model()
