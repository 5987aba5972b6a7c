"""Starts each server on the cores it is given, over the same guarded ONNX file."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.networks import Network

__all__ = ["INFER", "OUTPUTS", "PEERS", "Served", "reluguard", "start"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INFER = "/inference.GRPCInferenceService/ModelInfer"
OUTPUTS = ("logits", "reluguard_is_adversarial", "reluguard_likelihood", "reluguard_score")
_START_S = 120.0
_STOP_S = 20.0
_RELUGUARD = (
    "import sys\nfrom reluguard.service.process import serve\n"
    "from reluguard.service.settings import Settings\n"
    "sys.exit(serve(Settings.from_env()))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What there is to serve.

    Attributes:
        network: the production model and its guard, which only our server reads.
        guarded: the same as one ONNX file.
        name: of its input.
        folder: for configuration and logs.
        venvs: where the peers' virtual environments are made.
    """

    network: Network
    guarded: Path
    name: str
    folder: Path
    venvs: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How one server is started: its command, and what goes into its environment and folder."""

    command: Sequence[str]
    environ: Mapping[str, str]
    folder: Path


def _python(served: Served, name: str, packages: Sequence[str]) -> str:
    """Return the interpreter of a virtual environment with these packages, made if need be."""
    folder = served.venvs / name
    done = folder / "installed"
    if not done.exists() or done.read_text().split() != list(packages):
        print(f"making the virtual environment {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True)
        done.write_text(" ".join(packages))
    return str(folder / "bin" / "python")


def reluguard(served: Served, port: int) -> Start:
    """Our own server as anybody starts it, one thread."""
    settings = {
        "MODEL": str(served.network.model),
        "GUARD": str(served.network.guard),
        "NAME": "model",
        "PORT": str(port),
        "METRICS_PORT": "none",
        "THREADS": "1",
        "LOG_LEVEL": "WARNING",
        # a benchmark of throughput waits for its answers, however slow the network is
        "MAX_WAIT_S": "60",
    }
    environ = {f"RELUGUARD_{name}": value for name, value in settings.items()}
    return Start(command=[sys.executable, "-c", _RELUGUARD], environ=environ, folder=ROOT)


def plain_grpc(served: Served, port: int) -> Start:
    """A grpc.aio server without batching."""
    command = [sys.executable, "-m", "benchmarks.peers.plain_grpc"]
    return Start(
        command=[*command, str(served.guarded), str(port), served.name], environ={}, folder=ROOT
    )


def _mlserver(served: Served, port: int, batching: Mapping[str, float]) -> Start:
    python = _python(served, "mlserver", ["mlserver==1.7.1", "onnxruntime"])
    folder = served.folder / f"mlserver-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "onnx_runtime.py").write_text((HERE / "onnx_runtime.py").read_text())
    settings = {
        "host": "127.0.0.1", "http_port": port + 1, "grpc_port": port, "metrics_port": port + 2,
        "parallel_workers": 0, "debug": False, "grpc_max_message_length": 2**30,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "model", "implementation": "onnx_runtime.OnnxRuntime", **batching}
    (folder / "model-settings.json").write_text(json.dumps(model))
    environ = {"BENCHMARK_MODEL": str(served.guarded), "BENCHMARK_OUTPUTS": ",".join(OUTPUTS)}
    command = [str(Path(python).parent / "mlserver"), "start", str(folder)]
    return Start(command=command, environ=environ, folder=folder)


def mlserver(served: Served, port: int) -> Start:
    """MLServer without batching."""
    return _mlserver(served, port, {})


def mlserver_batching(served: Served, port: int) -> Start:
    """MLServer with its adaptive batching: up to 32 images, 2 ms."""
    return _mlserver(served, port, {"max_batch_size": 32, "max_batch_time": 0.002})


def triton(served: Served, port: int) -> Start:
    """Triton from nvidia-pytriton with a Python model and its dynamic batcher."""
    python = _python(served, "pytriton", ["nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime"])
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    script = str(HERE / "pytriton_server.py")
    return Start(
        command=[python, script, str(served.guarded), str(port), served.name, ",".join(OUTPUTS)],
        environ={"LD_LIBRARY_PATH": ":".join(filter(None, libraries))},
        folder=served.folder,
    )


PEERS: dict[str, Callable[[Served, int], Start]] = {
    "reluguard": reluguard,
    "grpc.aio, no batching": plain_grpc,
    "MLServer": mlserver,
    "MLServer, batching": mlserver_batching,
    "Triton, Python model": triton,
}


@contextmanager
def start(name: str, served: Served, *, cores: set[int], probe: bytes) -> Iterator[str]:
    """Run one of `PEERS` in a process group of its own and give its address once it answers.

    Args:
        name: a key of `PEERS`.
        served: what it serves.
        cores: that it may use, with all its threads and children.
        probe: a serialised ModelInfer request.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    port = _free_ports()
    how = PEERS[name](served, port)
    log = served.folder / f"server-{port}.log"
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # a child has its parent's
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                how.command, env=os.environ | how.environ, cwd=how.folder,
                stdout=output, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
    finally:
        os.sched_setaffinity(0, ours)
    address = f"127.0.0.1:{port}"
    try:
        _await(process, address, probe, log, name)
        yield address
    finally:
        _stop(process)


def _await(
    process: "subprocess.Popen[bytes]", address: str, probe: bytes, log: Path, name: str
) -> None:
    until = time.monotonic() + _START_S
    while True:
        with grpc.insecure_channel(address) as channel:
            try:
                channel.unary_unary(INFER, None, None)(probe, timeout=10)
            except grpc.RpcError as error:
                if process.poll() is not None or time.monotonic() > until:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} does not serve ({error}): {tail}") from error
                time.sleep(0.25)
            else:
                return


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        # children may outlive the leader; the group is asked again until it is gone
    process.wait()


def _free_ports() -> int:
    """Return the first of three ports in a row that are free now."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for more in (1, 2):
                    with socket.socket() as other:
                        other.bind(("127.0.0.1", port + more))
            except (OSError, OverflowError):
                continue
        return port
