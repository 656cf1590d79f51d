"""digits: handwritten digits, trained here, as a TensorFlow SavedModel with four signatures.

serving_default: image_bytes string [N] (PNG or JPEG, white on black, any size); pixels: pixels
float32 [N, 28, 28] in 0..1. Both -> scores float32 [N, 10], classes int64 [N]. classify and regress
take serialized tf.Example strings [N] with the feature `image_bytes`, as TensorFlow Serving's calls
of these names do: classify -> classes string [N, 10], scores [N, 10]; regress -> outputs float32
[N, 1], the expected digit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from catalog import Job
from digit_data import FILE, SIDE, read_digits
from digit_networks import CLASSES, accuracy, train
from tensorflow.core.protobuf import saved_model_pb2

LABELS = [str(digit) for digit in range(CLASSES)]


class DigitReader(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """A trained network behind the forms in which a digit arrives."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    def from_pixels(self, pixels: Any) -> dict[str, Any]:
        scores = self._network(pixels, training=False)
        return {"scores": scores, "classes": tf.argmax(scores, axis=1)}

    def from_bytes(self, image_bytes: Any) -> dict[str, Any]:
        return self.from_pixels(_decode_all(image_bytes))

    def classify(self, inputs: Any) -> dict[str, Any]:
        scores = self.from_bytes(_pictures_of(inputs))["scores"]
        classes = tf.tile(tf.constant([LABELS]), [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": scores}

    def regress(self, inputs: Any) -> dict[str, Any]:
        scores = self.from_bytes(_pictures_of(inputs))["scores"]
        digits = tf.constant(np.arange(CLASSES, dtype=np.float32)[:, None])
        return {"outputs": scores @ digits}


def _pictures_of(examples: Any) -> Any:
    features = {"image_bytes": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_example(examples, features)["image_bytes"]


def _decode_all(image_bytes: Any) -> Any:
    """Encoded pictures string [N] -> float32 [N, 28, 28] in 0..1."""
    return tf.map_fn(
        _decode, image_bytes, fn_output_signature=tf.TensorSpec([SIDE, SIDE], tf.float32)
    )


def _decode(content: Any) -> Any:
    image = tf.io.decode_image(content, channels=1, expand_animations=False)
    resized = tf.image.resize(image, [SIDE, SIDE], antialias=True)
    return tf.clip_by_value(resized[:, :, 0] / 255.0, 0.0, 1.0)


def build(job: Job) -> None:
    job.say("reading the digits")
    training, held_out = read_digits(job.files[FILE])
    job.say(f"training on {len(training.labels)} digits")
    network = train(job.version, training)
    metrics = {
        "held-out digits": len(held_out.labels),
        "held-out accuracy": round(accuracy(network, held_out), 4),
        "parameters": int(network.count_params()),
    }
    job.say(f"writing the SavedModel (accuracy {metrics['held-out accuracy']:.1%})")
    _save(DigitReader(network), job.folder)
    (job.folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (job.folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


def _save(reader: DigitReader, folder: Path) -> None:
    strings = tf.TensorSpec([None], tf.string, name="image_bytes")
    examples = tf.TensorSpec([None], tf.string, name="inputs")
    pixels = tf.TensorSpec([None, SIDE, SIDE], tf.float32, name="pixels")
    signatures = {
        "serving_default": tf.function(reader.from_bytes, input_signature=[strings]),
        "pixels": tf.function(reader.from_pixels, input_signature=[pixels]),
        "classify": tf.function(reader.classify, input_signature=[examples]),
        "regress": tf.function(reader.regress, input_signature=[examples]),
    }
    tf.saved_model.save(reader, str(folder), signatures=signatures)
    _set_methods(folder / "saved_model.pb")


def _set_methods(path: Path) -> None:
    """TensorFlow 2 marks every signature as predict; say which are classify and regress."""
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for name in ("classify", "regress"):
        signature = model.meta_graphs[0].signature_def[name]
        signature.method_name = f"tensorflow/serving/{name}"
    path.write_bytes(model.SerializeToString(deterministic=True))
