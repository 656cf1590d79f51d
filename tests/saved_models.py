"""SavedModels as the examples of TensorFlow Serving and KServe have them, made by TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSET = "foo.txt"


def half_plus_two(path: Path) -> None:
    """y = x / 2 + 2 as TensorFlow 2 exports it: all its signatures have the method `predict`.

    `serving_default` takes float32 `x` [rows, 1]; `regress_x_to_y` and `classify_x_to_y` take
    serialized Examples as `inputs`, and `named` does as `examples`.
    """
    import tensorflow as tf

    module = tf.Module()
    module.half, module.two = tf.Variable(0.5), tf.Variable(2.0)
    features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    strings = tf.TensorSpec([None], tf.string, name="inputs")

    def compute(x: Any) -> Any:
        return module.half * x + module.two

    def of_examples(serialized: Any) -> Any:
        return compute(tf.io.parse_example(serialized, features)["x"])

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32)])  # type: ignore[untyped-decorator]
    def predict(x: Any) -> Any:
        return {"y": compute(x)}

    @tf.function(input_signature=[strings])  # type: ignore[untyped-decorator]
    def regress(inputs: Any) -> Any:
        return {"outputs": of_examples(inputs)}

    @tf.function(input_signature=[strings])  # type: ignore[untyped-decorator]
    def classify(inputs: Any) -> Any:
        scores = of_examples(inputs)
        labels = tf.fill(tf.shape(scores), "half plus two")
        return {"classes": labels, "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # type: ignore[untyped-decorator]
    def named(examples: Any) -> Any:
        return {"outputs": of_examples(examples)}

    signatures = {
        "serving_default": predict,
        "regress_x_to_y": regress,
        "classify_x_to_y": classify,
        "named": named,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def half_plus_three(path: Path) -> None:
    """y = x / 2 + 3 as TensorFlow 1 exports it: reference variables, an asset, an operation that
    initialises. `serving_default` gives the asset's name too.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        half = v1.get_variable("a", initializer=0.5, use_resource=False)
        three = v1.get_variable("b", initializer=3.0, use_resource=False)
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        x = tf.identity(tf.io.parse_example(serialized, features)["x"], name="x")
        y = tf.identity(half * x + three, name="y")
        asset = path.parent / "source" / ASSET
        asset.parent.mkdir(parents=True)
        asset.write_text("asset-file-contents")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, tf.constant(str(asset)))
        name = v1.Variable("", name="name", trainable=False, collections=[], use_resource=False)
        session.run(v1.global_variables_initializer())
        info, definition = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        regressed = {"outputs": info(y)}, "tensorflow/serving/regress"
        classified = {"scores": info(y)}, "tensorflow/serving/classify"
        examples = {"inputs": info(serialized)}
        predict = "tensorflow/serving/predict"
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": definition({"x": info(x)}, {"y": info(y)}, predict),
                "asset": definition({"x": info(x)}, {"name": info(name)}, predict),
                "regress_x_to_y": definition(examples, *regressed),
                "classify_x_to_y": definition(examples, *classified),
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.group(name.assign(ASSET), name="init_all"),
        )
        builder.save()


def mnist(path: Path) -> None:
    """Ten `scores` of float32 `images` [rows, 784], as TensorFlow 1 exports them.

    The digit is the column, counted from the left, of the brightest pixel in the first row.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, 784], name="x")
        weights = v1.get_variable("w", initializer=tf.eye(784, 10), use_resource=False)
        scores = tf.nn.softmax(tf.matmul(images, weights), name="y")
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def(
            {"images": info(images)}, {"scores": info(scores)}, "tensorflow/serving/predict"
        )
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"predict_images": signature})
        builder.save()


def resnet(folder: Path) -> None:
    """Three models that tell how much of a picture is red, green and blue.

    `resnet` takes float32 `input_1` [rows, height, width, 3], `resnet_jpg` files as the one input
    `image_bytes` and `flowers` files as `image_bytes` with a `key` for each.
    """
    import tensorflow as tf

    def shares(picture: Any) -> Any:
        return tf.reduce_mean(picture, axis=(-3, -2))

    def of_files(files: Any) -> Any:
        def of_file(file: Any) -> Any:
            return shares(tf.cast(tf.io.decode_jpeg(file, 3), tf.float32) / 255)

        return tf.map_fn(of_file, files, fn_output_signature=tf.float32)

    files = tf.TensorSpec([None], tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])  # type: ignore[untyped-decorator]
    def of_pixels(input_1: Any) -> Any:
        return {"activation_49": shares(input_1)}

    @tf.function(input_signature=[files])  # type: ignore[untyped-decorator]
    def of_pictures(image_bytes: Any) -> Any:
        return {"scores": of_files(image_bytes)}

    @tf.function(input_signature=[files, files])  # type: ignore[untyped-decorator]
    def of_keyed_pictures(image_bytes: Any, key: Any) -> Any:
        scores = of_files(image_bytes)
        return {"scores": scores, "prediction": tf.argmax(scores, axis=1), "key": key}

    signatures = {"resnet": of_pixels, "resnet_jpg": of_pictures, "flowers": of_keyed_pictures}
    for name, signature in signatures.items():
        tf.saved_model.save(tf.Module(), str(folder / name / "1"), signatures=signature)
