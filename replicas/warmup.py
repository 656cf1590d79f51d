"""Runs on recorded or made-up requests, so that the first real one pays for no set-up."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError, InvalidArgument, ModelLoadError
from headrace.protocols.checks import wanted_names
from headrace.spec import BYTES, Signature, Tensor, TensorSpec
from replicas.recorded import Recorded, recorded_requests
from replicas.runtime import Runtime

logger = logging.getLogger(__name__)

# Convolutional models halve a picture up to five times, so its sides must be multiples of 32.
_SIDE = 64
_CHANNELS = (1, 3, 4)
_PICTURE_NAME = re.compile(r"image|picture|photo|frame|bytes|png|jpe?g", re.IGNORECASE)

PICTURE_PNG = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4"
    b"NqoAAAAASUVORK5CYII="
)
"""A red picture of 8x8 pixels, for string inputs that want an encoded picture."""


def warm_up(runtime: Runtime, folder: Path | None = None) -> None:
    """Run the requests that the version folder holds; without any, each signature once.

    Raises `ModelLoadError` for a recorded request that is refused, else what `run` raises.
    """
    count = 0
    for recorded in recorded_requests(folder) if folder is not None else ():
        _run_recorded(runtime, recorded)
        count += 1
    if count:
        logger.info(
            "%s/%s ran %d recorded requests", runtime.spec.name, runtime.spec.version, count
        )
    else:
        _run_synthetic(runtime)


def _run_recorded(runtime: Runtime, recorded: Recorded) -> None:
    request = recorded.decode(runtime.spec)
    inputs, most = request.inputs, runtime.spec.max_rows
    if request.rows is not None and 0 < most < request.rows:
        # More than one batch may hold; callers' requests are cut into several.
        inputs = {name: tensor[:most] for name, tensor in inputs.items()}
    try:
        names = wanted_names(request.signature, request.outputs)
        runtime.run(request.signature.name, inputs, list(names))
    except HeadraceError as error:
        raise ModelLoadError(f"warm-up request {recorded.where}: {error.message}") from error


def _run_synthetic(runtime: Runtime) -> None:
    """A model may refuse zeros and still serve real requests, so a refusal is only logged."""
    for name, signature in runtime.spec.signatures.items():
        inputs = synthetic_inputs(signature, rows=1)
        label = f"{runtime.spec.name}/{runtime.spec.version} {name}"
        if inputs is None:
            logger.info("no warm-up for %s: an input has no known rank", label)
            continue
        try:
            runtime.run(name, inputs, [output.name for output in signature.outputs])
        except InvalidArgument as error:
            logger.info("warm-up of %s refused: %s", label, error)


def synthetic_inputs(signature: Signature, rows: int) -> dict[str, Tensor] | None:
    """Zeros for each input (`[rows, ...]`), pictures for string inputs that are named so.

    None when an input's rank is unknown: nothing can be made up for it.
    """
    tensors = {}
    for spec in signature.required:
        shape = _shape(spec, rows)
        if shape is None:
            return None
        tensors[spec.name] = _fill(spec, shape)
    return tensors


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...] | None:
    if spec.shape is None:
        return None
    side = _SIDE if _is_picture(spec.shape) else 1
    sizes = [side if size is None else size for size in spec.shape]
    if spec.shape and spec.shape[0] is None:
        sizes[0] = rows
    return tuple(sizes)


def _is_picture(shape: tuple[int | None, ...]) -> bool:
    """[N, H, W, C] or [N, C, H, W]."""
    return len(shape) == 4 and (shape[1] in _CHANNELS or shape[3] in _CHANNELS)


def _fill(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    if spec.dtype != BYTES:
        return np.zeros(shape, spec.dtype)
    return np.full(shape, PICTURE_PNG if _PICTURE_NAME.search(spec.name) else b"", dtype=object)
