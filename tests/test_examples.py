"""Every example runs against a real server, as its docstring says."""

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.service.background import running

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server with reflection, images and what the guard says of them in process."""

    address: str
    images: Images
    verdicts: Verdicts
    source: Path
    picture: Path
    clean: int
    adversarial: int

    @property
    def flagged(self) -> str:
        """The line that every batch example ends with."""
        return f"{self.verdicts.is_adversarial.sum()} of {len(self.images)} images flagged\n"


@pytest.fixture(scope="module")
def scene(
    tiny_model: Path,
    tiny_guard: Path,
    make_images: Callable[..., Images],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    guard = Guard.open(tiny_model, tiny_guard, threads=1)
    images = make_images(60, seed=3)
    verdicts = guard.inspect(images)
    clean, adversarial = (
        int(np.flatnonzero(verdicts.is_adversarial == kind)[0]) for kind in (False, True)
    )
    np.savez(folder / "images.npz", images=images)
    (folder / "image.png").write_bytes(png(images[clean]))
    with running(guard, reflection=True) as server:
        yield Scene(
            address=server.address, images=images, verdicts=verdicts, clean=clean,
            adversarial=adversarial, source=folder / "images.npz", picture=folder / "image.png",
        )  # fmt: skip


def png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()


def run(name: str, *words: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_batch_job(scene: Scene, tmp_path: Path) -> None:
    """As a script, and as the class that map_batches makes and calls."""
    out = tmp_path / "out.npz"
    assert run("batch_job.py", scene.address, scene.source, out) == scene.flagged
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["prediction"], scene.verdicts.prediction)
    score = load("batch_job").Score(scene.address, "pixels")
    ids = np.arange(7)
    batch = score({"pixels": scene.images[:7], "id": ids})
    np.testing.assert_array_equal(batch["id"], ids)
    np.testing.assert_array_equal(batch["is_adversarial"], scene.verdicts.is_adversarial[:7])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_batch_job_on_ray(scene: Scene) -> None:
    """Its docstring's lines, on two workers."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        data = ray.data.from_numpy(scene.images)
        score = load("batch_job").Score
        found = data.map_batches(
            score, fn_constructor_args=[scene.address], batch_size=16, concurrency=2
        ).to_pandas()
    finally:
        ray.shutdown()
    assert found["is_adversarial"].sum() == scene.verdicts.is_adversarial.sum()


def test_tritonclient(scene: Scene) -> None:
    """An existing caller with one more output."""
    assert run("triton.py", scene.address, "model", scene.source) == scene.flagged


def test_the_handler(scene: Scene) -> None:
    """As a script, without a web framework."""
    answer = run("handler.py", scene.address, scene.picture)
    assert f"'class': {scene.verdicts.prediction[scene.clean]}" in answer


def test_the_web_service(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In FastAPI: a class for a clean upload, 422 for one that looks adversarial."""
    pytest.importorskip("fastapi", reason="needs FastAPI")
    from fastapi.testclient import TestClient

    monkeypatch.setenv("RELUGUARD_ADDRESS", scene.address)
    with TestClient(load("handler").app) as web:
        good = web.post("/classify", content=png(scene.images[scene.clean]))
        bad = web.post("/classify", content=png(scene.images[scene.adversarial]))
    assert good.status_code == 200
    assert good.json()["class"] == scene.verdicts.prediction[scene.clean]
    assert bad.status_code == 422
    assert bad.json()["error"] == "this image looks manipulated"


def test_reflection(scene: Scene) -> None:
    """A caller without our stubs lists, describes and calls."""
    listed = run("reflection.py", scene.address, "list")
    assert "inference.GRPCInferenceService\n" in listed
    assert "reluguard.v1.Guard\n  Inspect\n" in listed
    described = run("reflection.py", scene.address, "describe", "inference.ModelReadyRequest")
    assert described == "1 name\n2 version\n"
    ready = run("reflection.py", scene.address, "call",
                "inference.GRPCInferenceService/ModelReady", '{"name": "model"}')  # fmt: skip
    assert json.loads(ready) == {"ready": True}
    known = run("reflection.py", scene.address, "call", "reluguard.v1.Guard/Describe", "{}")
    assert json.loads(known)["input"]["layout"] == "NCHW"


def test_the_drop_in(scene: Scene, tiny_model: Path, tiny_guard: Path) -> None:
    """In the caller's own process, without a server."""
    assert run("drop_in.py", tiny_model, tiny_guard, scene.source).startswith(scene.flagged)


def test_every_example_is_tested() -> None:
    """No script lies about untried."""
    tried = Path(__file__).read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert f'"{file.name}"' in tried, file.name
