"""Every example runs against a real server, as its docstring says."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from detector.images import Images
from detector.runtime import Guard
from service.server import running

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_examples_run(
    tiny_model: Path, tiny_guard: Path, make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """Batch job, tritonclient and handler say what the guard says in process."""
    guard = Guard.open(tiny_model, tiny_guard, threads=1)
    images = make_images(30, seed=3)
    verdicts = guard.inspect(images)
    source, out, picture = tmp_path / "images.npz", tmp_path / "out.npz", tmp_path / "image.png"
    np.savez(source, images=images)
    clean = int(np.flatnonzero(~verdicts.is_adversarial)[0])
    buffer = io.BytesIO()
    Image.fromarray(images[clean][:, :, 0]).save(buffer, "PNG")
    picture.write_bytes(buffer.getvalue())
    flagged = f"{verdicts.is_adversarial.sum()} of 30 images flagged\n"
    with running(guard) as server:

        def run(name: str, *words: object) -> str:
            command = [sys.executable, str(EXAMPLES / name), server.address, *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert run("batch_job.py", source, out) == flagged
        assert run("triton.py", "model", source) == flagged
        assert f"'class': {verdicts.prediction[clean]}" in run("handler.py", picture)
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["prediction"], verdicts.prediction)
