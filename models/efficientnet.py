"""EfficientNet-Lite0 as a plain list of convolutions (Tan and Le 2019; Lite: ReLU6, no
squeeze-and-excite), batch normalisation folded into the weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_weights import read_checkpoint

SIZE = 224
CLASSES = 1000
FEATURES = 1280
# The part of the shorter side that the centre crop keeps, as in the network's own evaluation.
CROP = 0.875
# Pixels enter as (value - 127) / 128.
MEAN, SCALE = 127.0, 128.0

_EPSILON = 1e-3
# repeats, stride of the first, expansion, channels in, channels out; kernels are in the weights
_STAGES = (
    (1, 1, 1, 32, 16),
    (2, 2, 6, 16, 24),
    (2, 2, 6, 24, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 112),
    (4, 2, 6, 112, 192),
    (1, 1, 6, 192, 320),
)

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution with what surrounds it.

    `weight` is [out, in / groups, kernel, kernel]; padding is TensorFlow's SAME. `opens` keeps the
    input for the addition after the next layer that `closes`.
    """

    weight: Array
    bias: Array
    stride: int = 1
    groups: int = 1
    relu6: bool = True
    opens: bool = False
    closes: bool = False

    @property
    def kernel(self) -> int:
        return int(self.weight.shape[-1])


@dataclass(frozen=True, slots=True)
class Network:
    """The convolutions in order, then average pooling and a dense layer [classes, features]."""

    convolutions: tuple[Convolution, ...]
    dense_weight: Array
    dense_bias: Array


def read_network(path: Path) -> Network:
    """Read the published checkpoint at `path`."""
    weights = read_checkpoint(path)
    return Network(
        tuple(_convolutions(weights)),
        weights["_fc.weight"].astype(np.float32),
        weights["_fc.bias"].astype(np.float32),
    )


def _convolutions(weights: Mapping[str, NDArray[Any]]) -> Iterator[Convolution]:
    yield Convolution(*_fold(weights, "_conv_stem", "_bn0"), stride=2)
    index = 0
    for repeats, first_stride, expansion, channels_in, channels_out in _STAGES:
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            channels = channels_out if repeat else channels_in
            residual = stride == 1 and channels == channels_out
            yield from _block(weights, f"_blocks.{index}.", stride, channels * expansion, residual)
            index += 1
    yield Convolution(*_fold(weights, "_conv_head", "_bn1"))


def _block(
    weights: Mapping[str, NDArray[Any]], prefix: str, stride: int, width: int, residual: bool
) -> Iterator[Convolution]:
    expanded = f"{prefix}_expand_conv.weight" in weights
    if expanded:
        yield Convolution(*_fold(weights, f"{prefix}_expand_conv", f"{prefix}_bn0"), opens=True)
    depthwise = _fold(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
    yield Convolution(*depthwise, stride=stride, groups=width, opens=not expanded)
    project = _fold(weights, f"{prefix}_project_conv", f"{prefix}_bn2")
    yield Convolution(*project, relu6=False, closes=residual)


def _fold(weights: Mapping[str, NDArray[Any]], layer: str, norm: str) -> tuple[Array, Array]:
    gain, offset, mean, variance = (
        weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + _EPSILON)
    weight = weights[f"{layer}.weight"] * scale[:, None, None, None]
    return weight.astype(np.float32), (offset - mean * scale).astype(np.float32)
