"""Ray and Ray Serve as `headrace up` uses them; the only module that starts or joins a cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.config.args import Args
from headrace.errors import ConfigError, Unavailable
from headrace.runtimes import RUNTIMES
from headrace.secrets import own_secret, ray_token_file

SETTINGS: Mapping[str, str] = {
    "RAY_worker_niceness": "0",  # the default 15 makes slots yield to everything else
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Prestarted workers import Serve while Ray comes up: the first replicas start 1 s earlier.
    "RAY_preload_python_modules": "ray.serve._private.replica",
    # Each process would wake 20 times a second to count requests, of which Serve carries none, and
    # an agent would gather figures of all processes for a dashboard, which does not run.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
"""Environment of every Ray process; a value that is already there stays."""

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Size of Ray's object store, which carries no tensor; by default it claims 30 % of memory."""


@dataclass(frozen=True, slots=True)
class ApplicationStatus:
    """Serve's view of the application; `running` and `wanted` count replicas."""

    status: str
    message: str = ""
    running: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)


def check_installed(args: Args) -> None:
    """Raise `ConfigError` naming the extra to install when a package is missing here."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed here: pip install headrace")
    for name, slots in args.slots.items():
        for runtime in slots.preload if slots.max else ():
            library, extra = RUNTIMES[runtime].library, RUNTIMES[runtime].extra
            if importlib.util.find_spec(library) is None:
                extra = "gpu" if extra == "cpu" and slots.gpus else extra
                raise ConfigError(
                    f"the slot class {name!r} needs {library}, which is not installed here: "
                    f"pip install 'headrace[{extra}]'"
                )


def prepare_environment() -> None:
    """Put `SETTINGS` into the environment; Ray reads some of them when it is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


_starts_ray = threading.Event()
"""Set while Ray's processes are started."""


def _leave_group() -> None:
    if _starts_ray.is_set():
        os.setpgid(0, 0)


# A signal to our process group, as a terminal or a supervisor sends it, is for us: Ray's processes
# would end at once, before anything has drained. Ray has no setting for it, but starts its children
# with a `preexec_fn`, and with it such hooks run.
os.register_at_fork(after_in_child=_leave_group)


def start(address: str | None) -> None:
    """Start a private Ray, or join the cluster at `address`; raises `Unavailable`."""
    if address is None:
        prepare_environment()
        by_token = os.environ["RAY_AUTH_MODE"].lower() == "token"
        if by_token and not any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))):
            own_secret(ray_token_file())  # where Ray would make it, but for this user only
    import ray  # reads the environment on import

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "serve"}
    try:
        if address is None:
            # "local" and not None: None would join whatever cluster this machine last started.
            _starts_ray.set()
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        doing = "start Ray" if address is None else f"join the Ray cluster at {address}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(f"cannot {doing}: {reason}") from error
    finally:
        _starts_ray.clear()
    # Serve would announce an address of its own proxy, which does not run.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def deploy(document: Mapping[str, Any]) -> None:
    """Give a config file to Serve exactly as `serve run FILE` does; returns before it runs.

    Serve has no public call that takes a config file; this is the whole of its private API
    that Headrace uses.
    """
    from ray.serve._private.api import serve_start
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(document)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema, _blocking=False)


def application_status(name: str) -> ApplicationStatus | None:
    """What Serve says about an application, None when it has none of this name."""
    from ray import serve

    application = serve.status().applications.get(name)
    if application is None or application.status == "NOT_STARTED":
        return None
    running: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for deployment, status in application.deployments.items():
        states = {str(state): count for state, count in status.replica_states.items()}
        running[deployment] = states.get("RUNNING", 0)
        wanted[deployment] = sum(states.values())
    return ApplicationStatus(
        str(application.status.value), application.message or "", running, wanted
    )


def delete(names: Sequence[str], wait_s: float) -> None:
    """Delete applications and wait until their replicas have drained and left."""
    from ray import serve

    for name in names:
        serve.delete(name, _blocking=False)
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s and any(application_status(name) for name in names):
        time.sleep(0.1)


def stop() -> None:
    """Leave Ray; one that was started here ends, with Serve and all that runs on it."""
    import ray

    ray.shutdown()
