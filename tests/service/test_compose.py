"""deploy/compose: what it says fits together, and all of it is replayed with the real programs."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.reference import KEY, reference_of
from reluguard.detector.runtime import Reader
from reluguard.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())[
    "services"
]
OURS = ("setup", "reluguard", "traffic")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment(name: str) -> dict[str, str]:
    found: dict[str, str] = SERVICES[name].get("environment", {})
    return found


def mounts(name: str) -> dict[str, Path | str]:
    """Return what lies where in a container: a file of ours, or the name of a volume."""
    found: dict[str, Path | str] = {}
    for text in SERVICES[name].get("volumes", []):
        source, target = text.split(":")[:2]
        found[target] = (COMPOSE / source).resolve() if source.startswith(".") else source
    return found


def test_everything_that_is_mounted_is_there() -> None:
    """Each file of the checkout, each volume declared, each of them read-only but to its owner."""
    volumes = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["volumes"]
    for name, service in SERVICES.items():
        for source in mounts(name).values():
            assert source in volumes if isinstance(source, str) else source.is_file(), name
        for text in service.get("volumes", []):
            assert text.endswith(":ro") or name == "setup", text


def test_nobody_outside_reaches_it() -> None:
    """Ports of this machine only, images by version, no rights that aren't needed."""
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        if name in OURS:
            assert service["image"].endswith(f":{_version()}")
        if name in {"reluguard", "traffic"}:
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
        assert name == "setup" or service["security_opt"] == ["no-new-privileges:true"]


def _version() -> str:
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_names_and_ports_fit_together() -> None:
    """Who scrapes, who is told, who shows: each finds the other; settings are the server's own."""
    settings = Settings.from_env(environment("reluguard"))
    assert (settings.model, settings.guard) == (Path("/demo/digits.onnx"), Path("/demo/guard"))
    told = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (job,) = told["scrape_configs"]
    assert job["job_name"] == "reluguard"  # the alerts' own word for it
    assert job["static_configs"][0]["targets"] == [f"reluguard:{settings.metrics_port}"]
    (manager,) = told["alerting"]["alertmanagers"]
    assert manager["static_configs"][0]["targets"] == ["alertmanager:9093"]
    assert {"reluguard", "alertmanager"} <= set(SERVICES)
    (source,) = yaml.safe_load((COMPOSE / "grafana" / "datasources.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["isDefault"]  # which the dashboard's variable takes
    (provider,) = yaml.safe_load((COMPOSE / "grafana" / "dashboards.yml").read_text())["providers"]
    shown = environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(shown).parent) == provider["options"]["path"]
    assert shown in mounts("grafana")
    assert SERVICES["traffic"]["command"][1] == f"reluguard:{settings.port}"
    for place in (str(settings.capture), "/tmp"):
        assert any(text.split(":")[0] == place for text in SERVICES["reluguard"]["tmpfs"])
    named = {f"RELUGUARD_{name}" for name in ("HOST",)}  # the image says it itself
    assert not named & set(environment("reluguard"))
    assert "RELUGUARD_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()


def test_setup_makes_what_the_others_read() -> None:
    """Its commands are ours, and their files are where the server and the traffic look."""
    (script,) = SERVICES["setup"]["command"]
    assert "reluguard demo --out /demo\n" in script
    for name in ("digits.onnx", "held-out.npz", "challenger"):
        assert f"/demo/{name}" in script
    told = subprocess.run(
        [sys.executable, "-m", "reluguard", "fit", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    options = set(re.findall(r"--[a-z]+", script.partition("reluguard fit")[2]))
    assert options
    assert all(f"{option} " in told for option in options)


def program(*names: str) -> str:
    beside = Path(os.environ.get("PROMTOOL", "")).parent  # where CI unpacks them
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=str(beside))
        if found:
            return found
    pytest.skip(
        f"{names[0]} is not installed (Debian: packages prometheus, prometheus-alertmanager)"
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class Stack:
    """The services as processes, each as compose.yaml has it, on ports of this machine."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder, self._running = folder, running
        self.ports = {name: free_port() for name in ("50051", "8080", "9464", "9090", "9093")}

    def here(self, text: str) -> str:
        """Return a setting of a container as it is on this machine."""
        for name in ("reluguard", "prometheus", "alertmanager"):
            text = re.sub(
                rf"\b{name}:(\d+)", lambda found: f"127.0.0.1:{self.ports[found[1]]}", text
            )
        text = re.sub(r"^/(demo|captures)\b", rf"{self.folder}/\1", text)
        return re.sub(r"^/traffic.py$", str(COMPOSE / "traffic.py"), text)

    def start(self, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with the stack."""
        log = self._running.enter_context((self.folder / f"{name}.log").open("wb"))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        process = subprocess.Popen(
            command, cwd=self.folder, env=kept | variables, stdout=log, stderr=log
        )
        self._running.callback(process.wait, 20)
        self._running.callback(process.terminate)
        return process

    def get(self, port: str, path: str) -> Any:
        """Return a JSON document of one of the services, None where there is none yet."""
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=5) as reply:
                return json.loads(reply.read())
        except (OSError, ValueError):
            return None

    def until(self, what: Callable[[], Any], patience_s: float, why: str) -> Any:
        """Wait for something and return it."""
        until = time.monotonic() + patience_s
        while not (found := what()):
            assert time.monotonic() < until, f"{why}: {self._said()}"
            time.sleep(0.2)
        return found

    def _said(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs)


def faster(text: str) -> str:
    """Return rules and configurations that look more often, and at less."""
    for slow, quick in (("5s", "1s"), ("[5m]", "[15s]"), ("for: 2m", "for: 2s")):
        text = text.replace(slow, quick)
    return text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_attack_reaches_alertmanager_and_every_panel(
    tmp_path: Path, pair: Any, new_guard: Callable[..., Path], smooth: Any, rough: Images
) -> None:
    """Server, traffic, Prometheus, Alertmanager: the alarm comes, and no panel is empty."""
    prometheus = program("prometheus")
    alertmanager = program("alertmanager", "prometheus-alertmanager")
    demo = tmp_path / "demo"
    demo.mkdir()
    shutil.copy(pair.model, demo / "digits.onnx")
    with_reference(pair, smooth(300, 8), demo / "guard")
    new_guard(pair, tag="challenger", shift=1.0, path=demo / "challenger")
    np.savez(demo / "unseen.npz", clean=smooth(200, 7), attacked=rough)
    with ExitStack() as running:
        stack = Stack(tmp_path, running)
        serve_all(stack, prometheus, alertmanager)
        firing = stack.until(lambda: alarm(stack), 290, "no alarm came")
        assert firing["labels"]["model"] == "digits"
        assert firing["labels"]["severity"] == "critical"
        assert "of the last 5 minutes' images look adversarial" in firing["annotations"]["summary"]
        assert firing["receivers"] == [{"name": "operator"}]
        left = list(panels())

        def seen() -> bool:
            left[:] = [row for row in left if not has_data(stack, row[1])]
            return not left

        patience = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < patience, f"empty: {left}"
            time.sleep(0.5)


def with_reference(pair: Any, clean: Images, path: Path) -> None:
    """Write the pair's guard with what drift is measured from, as `fit` does it."""
    artifact = read_guard(pair.guard)
    manifest, taps = artifact.manifest, artifact.manifest.taps
    production = load_production(pair.model, output=manifest.answer)
    rates, logits = Reader(production, manifest.input, taps, threads=1).read(clean)
    reference = reference_of(rates, logits, taps).to_json()
    write_guard(
        path,
        manifest=replace(manifest, provenance={KEY: reference}),
        head=artifact.head,
        golden=artifact.golden,
    )


def serve_all(stack: Stack, prometheus: str, alertmanager: str) -> None:
    """Start what compose.yaml starts, in its order."""
    variables = {name: stack.here(text) for name, text in environment("reluguard").items()}
    variables |= {"RELUGUARD_PORT": str(stack.ports["50051"]),
                  "RELUGUARD_HTTP_PORT": str(stack.ports["8080"]),
                  "RELUGUARD_METRICS_PORT": str(stack.ports["9464"]),
                  "RELUGUARD_DRIFT_S": "2", "RELUGUARD_THREADS": "1"}  # fmt: skip
    stack.start("server", sys.executable, "-m", "reluguard", "serve", **variables)
    assert SERVICES["reluguard"]["healthcheck"]["test"] == ["CMD", "reluguard", "health"]
    address = f"127.0.0.1:{stack.ports['50051']}"
    ask = [sys.executable, "-m", "reluguard", "health", "--address", address]
    stack.until(
        lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0,
        60,
        "the server does not serve",
    )
    python, file = SERVICES["traffic"]["entrypoint"]
    assert python == "python"
    arguments = [stack.here(text) for text in SERVICES["traffic"]["command"]]
    arguments[arguments.index("--quiet") + 1] = "3"
    stack.start("traffic", sys.executable, stack.here(file), *arguments)
    for target, source in mounts("prometheus").items():
        assert isinstance(source, Path)
        text = faster(stack.here(source.read_text()))
        (stack.folder / Path(target).name).write_text(text)
    (told,) = (source for source in mounts("alertmanager").values() if isinstance(source, Path))
    (stack.folder / "alertmanager.yml").write_text(faster(told.read_text()))
    stack.start(
        "alertmanager", alertmanager, "--config.file=alertmanager.yml", "--storage.path=told",
        f"--web.listen-address=127.0.0.1:{stack.ports['9093']}", "--cluster.listen-address=",
    )  # fmt: skip
    stack.start(
        "prometheus", prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=series",
        f"--web.listen-address=127.0.0.1:{stack.ports['9090']}",
    )  # fmt: skip


def alarm(stack: Stack) -> Any:
    """Return what Alertmanager knows of the attack."""
    for told in stack.get("9093", "/api/v2/alerts") or []:
        if told["labels"]["alertname"] == "ReluguardAttackWave":
            return told
    return None


def panels() -> Iterator[tuple[str, str]]:
    """Yield each query of the dashboard that Grafana would be given, with its panel's title."""
    (file,) = (source for source in mounts("grafana").values()
               if isinstance(source, Path) and source.suffix == ".json")  # fmt: skip
    for panel in json.loads(file.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "20s")
            yield panel["title"], re.sub(r"\$\{?(model|instance)\}?", ".+", expression)


def has_data(stack: Stack, expression: str) -> bool:
    """Whether Prometheus answers a query with at least one number."""
    answer = stack.get("9090", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    rows = [] if answer is None else answer["data"]["result"]
    return any(math.isfinite(float(row["value"][1])) for row in rows)


def test_the_probe_can_fail() -> None:
    """Queries of the dashboard are found, and none still holds a variable."""
    found = list(panels())
    assert len(found) > 20
    assert not any("$" in expression for _, expression in found)
