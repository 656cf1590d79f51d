"""tagger_tf: EfficientNet-Lite0 as a TensorFlow SavedModel with two signatures.

serving_default: images uint8 [N, 224, 224, 3] RGB; image_bytes: image_bytes string [N], JPEG or PNG
of any size. Both -> scores float32 [N, 1000] (softmax), features float32 [N, 1280].
"""

from typing import Any

import tensorflow as tf
from catalog import Job
from efficientnet import CROP, MEAN, SCALE, SIZE, Network, read_network
from tagger import LABELS, WEIGHTS, write_labels


class Tagger(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """The network with its weights as variables."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._layers = network.convolutions
        self._weights = [
            # Depthwise kernels are [k, k, channels, 1], others [k, k, in, out].
            tf.Variable(layer.weight.transpose(2, 3, *((0, 1) if layer.groups > 1 else (1, 0))))
            for layer in network.convolutions
        ]
        self._biases = [tf.Variable(layer.bias) for layer in network.convolutions]
        self._dense_weight = tf.Variable(network.dense_weight.T)
        self._dense_bias = tf.Variable(network.dense_bias)

    def from_images(self, images: Any) -> dict[str, Any]:
        value = opened = (tf.cast(images, tf.float32) - MEAN) / SCALE
        for layer, weight, bias in zip(self._layers, self._weights, self._biases, strict=True):
            if layer.opens:
                opened = value
            strides = [1, layer.stride, layer.stride, 1]
            convolve = tf.nn.depthwise_conv2d if layer.groups > 1 else tf.nn.conv2d
            value = convolve(value, weight, strides, "SAME") + bias
            if layer.relu6:
                value = tf.nn.relu6(value)
            if layer.closes:
                value += opened
        features = tf.reduce_mean(value, [1, 2])
        logits = features @ self._dense_weight + self._dense_bias
        return {"scores": tf.nn.softmax(logits), "features": features}

    def from_bytes(self, image_bytes: Any) -> dict[str, Any]:
        spec = tf.TensorSpec([SIZE, SIZE, 3], tf.uint8)
        return self.from_images(tf.map_fn(_decode, image_bytes, fn_output_signature=spec))


def _decode(content: Any) -> Any:
    """One encoded picture -> its centre as uint8 [224, 224, 3]."""
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.cast(tf.round(CROP * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    top, left = (height - side) // 2, (width - side) // 2
    centre = image[top : top + side, left : left + side]
    resized = tf.image.resize(centre, [SIZE, SIZE], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


def build(job: Job) -> None:
    job.say("reading the weights")
    tagger = Tagger(read_network(job.files[WEIGHTS]))
    job.say("writing the SavedModel")
    images = tf.TensorSpec([None, SIZE, SIZE, 3], tf.uint8, name="images")
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    signatures = {
        "serving_default": tf.function(tagger.from_images, input_signature=[images]),
        "image_bytes": tf.function(tagger.from_bytes, input_signature=[image_bytes]),
    }
    tf.saved_model.save(tagger, str(job.folder), signatures=signatures)
    write_labels(job.files[LABELS], job.folder / "labels.txt")
