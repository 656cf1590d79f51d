"""SavedModels as the quick starts of TensorFlow Serving have them, made by TensorFlow itself."""

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
        contents = tf.identity(tf.io.read_file(v1.placeholder(tf.string, [], "file")), "contents")
        session.run(v1.global_variables_initializer())
        info, definition = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        regressed = {"outputs": info(y)}, "tensorflow/serving/regress"
        classified = {"scores": info(y)}, "tensorflow/serving/classify"
        examples = {"inputs": info(serialized)}
        file = {"file": info(session.graph.get_tensor_by_name("file:0"))}
        predict = "tensorflow/serving/predict"
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": definition({"x": info(x)}, {"y": info(y)}, predict),
                "asset": definition({"x": info(x)}, {"name": info(name)}, predict),
                "read": definition(file, {"contents": info(contents)}, predict),
                "regress_x_to_y": definition(examples, *regressed),
                "classify_x_to_y": definition(examples, *classified),
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.group(name.assign(ASSET), name="init_all"),
        )
        builder.save()
