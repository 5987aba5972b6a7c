"""What an installed reluguard must do, run by the Python it is installed for: FOLDER [--training].

FOLDER holds the committed model, guard, images and scores (tests/golden/v0.1). Everything runs in a
folder full of the user's own modules that have our rooms' names and raise when they are imported.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMAND = Path(sys.executable).with_name("reluguard")
NAMES = ("commands", "detector", "models", "proto", "service", "tests", "training")
OF_TRAINING = {"Attack", "AttackResult", "Budget", "GuardedModule", "Goal", "Victim"} | {
    "Evaluation", "RedTeamReport", "ReportCard", "Retrained",
    "analyze", "evaluate", "fit", "redteam", "retrain",
}  # fmt: skip
LIMIT_S = 1500  # against a hang, not for speed
TWIN = """
from reluguard.detector.model import load_production
from reluguard.training.twin.onnx_torch import OnnxModule
from training.layers import MODEL


def net():
    production = load_production(MODEL)
    return OnnxModule(production.proto, production.logits)
"""


def main(golden: Path, *, training: bool) -> None:
    """Try everything, and say how long each part took."""
    steps = [only_our_name, every_help, scores_and_exports, serves]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for step in [*steps, *([demo_fit_evaluate] if training else [])]:
            for name in NAMES:
                (Path(folder) / f"{name}.py").write_text(f"raise SystemExit('{name} of the user')")
            start = time.monotonic()
            step(golden)
            print(f"  {step.__name__}: {time.monotonic() - start:.0f} s", flush=True)
        public_names(training=training)


def reluguard(*arguments: object, path: str = ".") -> str:
    """Run the command, which must end well, and return what it printed."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, "PYTHONPATH": path},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"reluguard {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def only_our_name(_: Path) -> None:
    """The installation is `reluguard`, its metadata and the command, and nothing else."""
    files = importlib.metadata.files("reluguard")
    assert files, "the installation lists no files"
    names = {file.as_posix() for file in files}
    assert "reluguard/py.typed" in names
    tops = {file.parts[0] for file in files if ".." not in file.parts}
    version = importlib.metadata.version("reluguard")
    assert tops == {"reluguard", f"reluguard-{version}.dist-info"}, tops
    outside = [file for file in files if ".." in file.parts]
    assert [file.name for file in outside] == ["reluguard"], outside
    assert reluguard("--version").strip() == version
    spoken = [sys.executable, "-P", "-m", "reluguard", "--version"]
    assert subprocess.run(spoken, capture_output=True, text=True, check=True).stdout == (
        f"{version}\n"
    )


def every_help(_: Path) -> None:
    """Every command says what it does; a wrong option is wrong usage."""
    names = re.findall(r"^  ([a-z]+) {2,}\S", reluguard("--help"), re.MULTILINE)
    assert {"fit", "serve", "label"} <= set(names), names
    with ThreadPoolExecutor(2) as pool:
        helps = pool.map(lambda name: reluguard(name, "--help"), names)
        for name, told in zip(names, helps, strict=True):
            assert f"reluguard {name}" in told
    wrong = subprocess.run([COMMAND, "score"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2, wrong.stderr
    assert "Missing option" in wrong.stderr, wrong.stderr


def scores_and_exports(golden: Path) -> None:
    """Offline verdicts are those that v0.1 gave, and the exported file holds both in one."""
    import numpy as np

    both = ("--model", golden / "model.onnx", "--guard", golden / "guard", "--threads", 1)
    reluguard("score", *both, "--data", golden / "images.npz", "--out", "scores.npz")
    with np.load("scores.npz") as ours, np.load(golden / "scores.npz") as theirs:
        np.testing.assert_allclose(ours["score"], theirs["score"], atol=2e-3)
    reluguard("export", *both[:4], "--out", "guarded.onnx")
    assert Path("guarded.onnx").stat().st_size > (golden / "model.onnx").stat().st_size


def serves(golden: Path) -> None:
    """A server answers our client, `health` and both tritonclients as `Guard` does in process."""
    import numpy as np

    from reluguard import Client, Guard

    guard = Guard.open(golden / "model.onnx", golden / "guard", threads=1)
    with np.load(golden / "images.npz") as arrays:
        images = arrays["images"]
    own = guard.inspect(images)
    with served(golden) as (address, by_http):
        reluguard("health", "--address", address)
        with Client(address) as client:
            np.testing.assert_allclose(client.inspect(images).score, own.score, atol=1e-4)
        with contextlib.suppress(ModuleNotFoundError):
            import tritonclient.grpc
            import tritonclient.http

            with tritonclient.grpc.InferenceServerClient(address) as other:
                (known,) = other.get_model_repository_index(as_json=True)["models"]
                name = other.get_model_metadata(known["name"]).inputs[0].name
            for kind, place in ((tritonclient.grpc, address), (tritonclient.http, by_http)):
                with kind.InferenceServerClient(place) as other:
                    given = kind.InferInput(name, list(images.shape), "UINT8")
                    given.set_data_from_numpy(images)
                    wanted = [kind.InferRequestedOutput("reluguard_score")]
                    reply = other.infer(known["name"], [given], outputs=wanted)
                scores = reply.as_numpy("reluguard_score")
                np.testing.assert_allclose(scores.ravel(), own.score, atol=1e-4)


@contextlib.contextmanager
def served(golden: Path) -> Iterator[tuple[str, str]]:
    """Run `reluguard serve` on ports of the system's choice, and give where gRPC and HTTP are."""
    both = ["--model", str(golden / "model.onnx"), "--guard", str(golden / "guard")]
    with subprocess.Popen(
        [COMMAND, "serve", *both, "--threads", "1", "--port", "0", "--metrics-port", "0",
         "--http-port", "0"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."},
    ) as server:  # fmt: skip
        assert server.stderr is not None
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r'by HTTP on ([^"]+)"', line):
                    first = re.search(r"serving on ([^,]+),", "".join(lines))
                    assert first, lines
                    yield first[1], found[1]
                    break
            else:
                raise AssertionError("".join(lines))
        finally:
            server.terminate()
            rest = server.stderr.read()
        assert server.wait(60) == 0, rest


def demo_fit_evaluate(_: Path) -> None:
    """The demo; a guard by the user's own `training.model:net`, evaluated; their typo is theirs."""
    import numpy as np

    told = json.loads(reluguard("demo", "--json", "--out", "demo"))
    assert told, "the demo tells nothing"
    model = Path("demo/digits.onnx").resolve()
    with np.load("demo/held-out.npz") as arrays:
        for name, rows in (("known", slice(400)), ("fresh", slice(400, 600))):
            np.savez(f"{name}.npz", **{key: arrays[key][rows] for key in ("images", "labels")})
    Path("training.py").unlink()
    Path("training").mkdir()
    Path("training/__init__.py").touch()
    Path("training/layers.py").write_text(f"MODEL = {str(model)!r}\n")
    Path("training/model.py").write_text(TWIN)
    reluguard(
        "fit", "--model", model, "--data", "known.npz", "--out", "guard", "--recipe", "digits",
        "--twin", "training.model:net", "--workers", 1, "--threads", 1, path="elsewhere",
    )  # fmt: skip
    both = ("--model", model, "--guard", "guard", "--data", "fresh.npz")
    quickly = ("--limit", 60, "--matrix-rows", 60, "--no-composed")
    reluguard("evaluate", *both, "--attack", "fgsm-linf-4", "--out", "report", *quickly)
    assert list(Path("report").iterdir())
    Path("training/model.py").write_text("def net():\n    return numpi.zeros(3)\n")
    done = subprocess.run(
        [COMMAND, "fit", "--model", model, "--data", "known.npz", "--out", "other",
         "--recipe", "digits", "--twin", "training.model:net"],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "model.py, line 2: NameError: name 'numpi'" in done.stderr, done.stderr


def public_names(*, training: bool) -> None:
    """Every public name loads, those of training where that is installed."""
    import reluguard as face

    for name in face.__all__:
        try:
            getattr(face, name)
        except ModuleNotFoundError as error:
            assert not training, f"{name}: {error}"
            assert name in OF_TRAINING, name
            assert "reluguard[training]" in str(error), error


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), training="--training" in sys.argv[2:])
