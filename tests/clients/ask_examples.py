"""Does what TensorFlow Serving's example clients do, and prints what came as one JSON object.

Usage: ask_examples HTTP GRPC, each as host:port; runs where tensorflow-serving-api is.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from typing import Any

import grpc
import numpy as np
import requests
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

IMAGES = 2000
CONCURRENCY = 8
RGB = (230, 40, 10)


def jpeg() -> bytes:
    """A picture of one colour, mostly red."""
    file = io.BytesIO()
    Image.new("RGB", (16, 12), RGB).save(file, "JPEG")
    return file.getvalue()


def digits(stub: Any) -> dict[str, int]:
    """How many of IMAGES digits are told right, wrong or not at all, CONCURRENCY at a time."""
    told = {"right": 0, "wrong": 0, "failed": 0}
    free, lock = threading.Semaphore(CONCURRENCY), threading.Lock()

    def callback(digit: int) -> Any:
        def done(future: Any) -> None:
            outcome = "failed"
            if future.exception() is None:
                scores = np.array(future.result().outputs["scores"].float_val)
                outcome = "right" if np.argmax(scores) == digit else "wrong"
            with lock:
                told[outcome] += 1
            free.release()

        return done

    for number in range(IMAGES):
        digit = number % 10
        image = np.zeros(784, np.float32)
        image[digit] = 1.0
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "mnist", "predict_images"
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(image, shape=[1, image.size]))
        free.acquire()
        stub.Predict.future(request, 20.0).add_done_callback(callback(digit))
    for _ in range(CONCURRENCY):
        free.acquire()
    return told


def class_over_grpc(stub: Any, pixels: Any) -> int:
    """The class of a picture as resnet_client_grpc.py finds it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "resnet", "serving_default"
    request.inputs["input_1"].CopyFrom(tf.make_tensor_proto(pixels.astype(np.float32)))
    result = stub.Predict(request, 20.0)
    return int(np.argmax(result.outputs["activation_49"].float_val))


def class_over_rest(http: str, model: str, body: str) -> int:
    """The class of a picture as resnet_client.py finds it."""
    url = f"http://{http}/v1/models/{model}:predict"
    response = requests.post(url, data=body, timeout=20)
    response.raise_for_status()
    return int(np.argmax(response.json()["predictions"][0]))


def main(http: str, address: str) -> None:
    """Ask everything."""
    file = jpeg()
    pixels = np.expand_dims(np.array(Image.open(io.BytesIO(file))) / 255.0, 0)
    text = base64.b64encode(file).decode()
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answers = {
            "digits": digits(stub),
            "resnet_grpc": class_over_grpc(stub, pixels),
            "resnet_rest": class_over_rest(
                http, "resnet", json.dumps({"instances": pixels.tolist()})
            ),
            "resnet_jpg": class_over_rest(
                http, "resnet_jpg", '{"instances" : [{"b64": "' + text + '"}]}'
            ),
        }
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
