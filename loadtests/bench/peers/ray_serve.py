"""The benchmark's model behind Ray Serve itself, with or without HAProxy; in our own environment.

RAY_SERVE_ENABLE_HA_PROXY and RAY_SERVE_THROUGHPUT_OPTIMIZED are Ray's own switches.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from loadtests.bench.peers.onnx_model import RAW, ROWS, OnnxModel

PORTS = os.environ["BENCH_PORTS"].split(",")
FOLDER = os.environ["BENCH_FOLDER"]
WAIT_S = 0.001
ONGOING = 512
TYPE = "application/octet-stream" if RAW else "application/json"


def main() -> None:
    # Read when Ray is imported; all of its processes inherit them.
    os.environ |= {
        "RAY_SERVE_HAPROXY_STATS_PORT": PORTS[1],
        "RAY_SERVE_HAPROXY_METRICS_PORT": PORTS[2],
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{FOLDER}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{FOLDER}/haproxy.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": FOLDER,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{FOLDER}/haproxy.state",
    }
    import ray
    from ray import serve

    class Model:
        """One deployment: Serve's proxy hands it the request."""

        def __init__(self) -> None:
            self._model = OnnxModel()

        @serve.batch(max_batch_size=ROWS, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
        async def run(self, rows: list[Any]) -> list[Any]:
            return list(self._model.run(np.stack(rows)))

        async def __call__(self, request: Request) -> Response:
            answer = await self.run(self._model.decode(await request.body()))
            return Response(self._model.encode(answer), media_type=TYPE)

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(PORTS[0])})
    deployment = serve.deployment(Model, max_ongoing_requests=ONGOING)
    serve.run(deployment.bind(), name="bench", route_prefix="/")
    signal.pause()


if __name__ == "__main__":
    main()
