"""A Keras network exported by tf2onnx, as the how-to page says, is guarded and seen."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.taps import survey

_PROGRAM = """
import sys
import keras
import numpy as np
import tensorflow as tf
import tf2onnx

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((12, 12, 3)),
    keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
    keras.layers.BatchNormalization(),
    keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(5, activation="softmax"),
])
taken = (tf.TensorSpec((None, 12, 12, 3), tf.float32, name="image"),)
tf2onnx.convert.from_function(
    tf.function(lambda image: model(image, training=False)),
    input_signature=taken, opset=17, output_path=sys.argv[1],
)
images = np.load(sys.argv[2])
np.save(sys.argv[3], model(images.astype(np.float32) / 255, training=False))
"""


@pytest.mark.slow
def test_a_keras_network_by_tf2onnx_is_guarded(
    make_images: Callable[..., Images], make_guard: Callable[..., Path], tmp_path: Path
) -> None:
    """Its gates are read, images stay channels last, and it answers as Keras does."""
    for name in ("tensorflow", "tf2onnx", "keras"):
        # found without importing: TensorFlow and torch in one process is not what is tested
        if not any((Path(place) / name).is_dir() for place in sys.path if place):
            pytest.skip(f"{name} is not installed here")
    images = make_images(20, size=12, channels=3, seed=0)
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in ("model.onnx", "images.npy", "scores.npy")]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *files],
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    production = load_production(files[0])
    spec = infer_spec(production, (12, 12, 3))
    assert spec.layout == "NHWC"
    assert len(survey(production, spec).taps) == 2
    guard = make_guard(files[0], tmp_path / "guard", image_shape=(12, 12, 3))
    found = Guard.open(files[0], guard).inspect(images)
    np.testing.assert_allclose(
        found.outputs[production.answer], np.load(files[2]), rtol=1e-3, atol=1e-5
    )
