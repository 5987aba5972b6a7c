"""What lies in deploy/ fits what the server really exports and reads."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry

from reluguard.detector.looks.thresholds import Thresholds
from reluguard.service.captures.drift import Drift
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.monitoring.live_guards import LiveGuard
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.protocols.health import LIVE
from reluguard.service.room import room_of
from reluguard.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SCRAPED = {"instance", "job"}  # labels that Prometheus itself adds


def exported() -> dict[str, set[str]]:
    """Return every series name the server exports, with its labels."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    model = metrics.model("m", "annotate")
    thresholds = Thresholds(fpr=0.05, first=np.zeros(1, np.float32))
    model.guard(
        LiveGuard(
            digest="d",
            model_sha256="s",
            created=0.0,
            thresholds=thresholds,
            challenger="c",
            challenger_thresholds=thresholds,
        )
    )
    metrics.rpc.method("unary", "s", "m")
    metrics.drift("m", Drift(samples=0.0, statistics={}, advice="wait", layers={"l": 0.0}))
    names: dict[str, set[str]] = {"up": set()}
    for family in registry.collect():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield str(rule.get("alert", rule.get("record"))), rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for trigger in documents("keda.yaml")[0]["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def test_expressions_use_only_exported_names_and_labels() -> None:
    """Alerts, dashboard and scaler ask for nothing that isn't there."""
    names = exported()
    recorded = {
        rule["record"]: set(re.findall(r"\w+", ",".join(re.findall(r"by \((.*?)\)", rule["expr"]))))
        for rule in rules()
        if "record" in rule
    }
    seen = set()
    for where, expression in expressions():
        found = list(selectors(expression))
        assert found, where
        for name, labels in found:
            assert name in names or name in recorded, f"{where}: {name}"
            known = names.get(name, recorded.get(name, set()))
            assert labels <= known | SCRAPED, f"{where}: {name}{labels}"
            seen.add(name)
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} - {"up"}
    unseen = {name for name in families if not any(one.startswith(name) for one in seen)}
    assert unseen <= {
        "grpc_server_msg_received_total",
        "grpc_server_msg_sent_total",
    }, "exported, and shown nowhere"


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each series name of a PromQL expression with the labels it is selected by."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\b(by|on|ignoring)\s*\([^)]*\)", "", text)
    for name, selector in re.findall(r"([a-zA-Z_][a-zA-Z0-9_:]*)(?:\{([^}]*)\})?", text):
        if name.startswith(("reluguard", "grpc_server")) or name == "up":
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))


def test_the_probe_can_fail() -> None:
    """The test above reads names and labels, so it would notice a misspelt one."""
    found = dict(selectors('sum by (a) (rate(reluguard_verdict_total{modl=~"x", b!="y"}[5m]))'))
    assert found == {"reluguard_verdict_total": {"modl", "b"}}
    assert "reluguard_verdict_total" not in exported()


def test_label_values_in_expressions_are_ours() -> None:
    """Verdicts, reasons and outcomes are spelt as the server spells them."""
    registry = CollectorRegistry()
    Metrics(registry).model("m", "annotate")
    values: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    for where, expression in expressions():
        for label, text in re.findall(r'(verdict|reason|outcome)=~?"([^"]*)"', expression):
            assert set(text.split("|")) <= values[label], where


def promtool() -> str:
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_alert_rules_pass_their_own_tests(arguments: tuple[str, ...]) -> None:
    """Each alert fires when it should and not before, by promtool."""
    done = subprocess.run(
        [promtool(), *arguments], cwd=ALERTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    """No alert goes out untried."""
    tests = yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())["tests"]
    tried = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert {rule["alert"] for rule in rules() if "alert" in rule} == tried


def test_the_dashboard_is_one() -> None:
    """Every panel has its own place, a data source and at least one query."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", DASHBOARD.read_text()))
    assert used - {"__all", "__rate_interval"} <= variables


def test_probes_ask_the_plain_port_and_live_is_less_than_ready() -> None:
    """Each by the kubelet's own gRPC, on the port that needs no TLS; a drain is no death."""
    for _, container in containers():
        environ = {entry["name"]: entry["value"] for entry in container["env"]}
        port = int(environ["RELUGUARD_HEALTH_PORT"])
        probes = {kind: container[f"{kind}Probe"]["grpc"] for kind in ("readiness", "liveness")}
        probes["startup"] = container.get("startupProbe", container["readinessProbe"])["grpc"]
        assert {probe["port"] for probe in probes.values()} == {port}
        assert {kind: probe.get("service") for kind, probe in probes.items()} == {
            "readiness": None, "startup": None, "liveness": LIVE,
        }  # fmt: skip


MEASURED_MIB = 913  # deployment.yaml says of what
ROW_BYTES = 224 * 224 * 3 * 4


def test_what_callers_may_use_fits_the_limit() -> None:
    """What was measured under load, all that callers can make it hold, and /tmp in memory."""
    for pod, container in containers():
        environ = {entry["name"]: entry["value"] for entry in container["env"]}
        settings = Settings.from_env({k: v for k, v in environ.items() if k.startswith(PREFIX)})
        limit = container["resources"]["limits"]["memory"]
        assert limit.endswith("Gi")
        (tmp,) = (volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)
        assert tmp["medium"] == "Memory"
        held = room_of(settings, ROW_BYTES).memory_bytes / 2**20
        needed = MEASURED_MIB + held + int(tmp["sizeLimit"].removesuffix("Mi"))
        assert needed < int(limit.removesuffix("Gi")) * 1024


def test_policies_and_monitors_name_what_there_is() -> None:
    """Ports, labels and secrets of the deployment, and no port for everybody."""
    deployment, service, _ = documents("deployment.yaml")
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    (policy,) = documents("networkpolicy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    opened = set()
    for rule in policy["spec"]["ingress"]:
        assert rule["from"]
        opened |= {port["port"] for port in rule["ports"]}
    assert opened == ports - {"health"}
    (monitor,) = documents("servicemonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "reluguard"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    (certificate,) = documents("certificate.yaml")
    secrets = {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"]
               if "secret" in volume}  # fmt: skip
    assert certificate["spec"]["secretName"] in secrets
    assert service["metadata"]["name"] in certificate["spec"]["dnsNames"]


CUSTOM = {"keda.sh/v1alpha1", "serving.kserve.io/v1beta1", "monitoring.coreos.com/v1",
          "cert-manager.io/v1"}  # fmt: skip


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_manifests_are_what_kubernetes_takes(file: Path) -> None:
    """By Kubernetes's own schemas, offline; of custom kinds the head and nothing unknown beside."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for document in yaml.safe_load_all(file.read_text()):
        if document["apiVersion"] in CUSTOM:
            assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
            assert document["metadata"]["name"] == "reluguard"
        else:
            validate.validate(document, "1.31", strict=True)


def test_the_schemas_can_fail() -> None:
    """A misspelt field is found."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    deployment = documents("deployment.yaml")[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, "1.31", strict=True)


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (pod, container) of everything that runs our image."""
    for file in KUBERNETES:
        for document in yaml.safe_load_all(file.read_text()):
            spec = document["spec"]
            pod = spec.get("predictor") or spec.get("template", {}).get("spec")
            for container in (pod or {}).get("containers", []):
                yield pod, container


def test_pods_run_as_nobody_with_settings_the_server_knows() -> None:
    """Every RELUGUARD_ variable is a setting, and the drain fits into the grace period."""
    found = list(containers())
    assert len(found) == 2
    for pod, container in found:
        environ = {entry["name"]: entry["value"] for entry in container["env"]}
        settings = Settings.from_env(
            {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        )
        assert settings.host == "0.0.0.0"
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        grace = pod.get("terminationGracePeriodSeconds", 30)
        assert grace > settings.drain_delay_s + settings.drain_s + 1
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        folders = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in (settings.models, settings.tokens, settings.tls_certificate, settings.tls_key):
            assert path is None or any(str(path).startswith(folder) for folder in folders)
        ports = {port["containerPort"] for port in container["ports"]}
        assert settings.port in ports
        assert settings.tokens is not None
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_scalers_and_services_point_at_the_deployment() -> None:
    """Names, labels and ports agree across the files."""
    deployment, service, budget = documents("deployment.yaml")
    name = deployment["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    ports = {
        port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for file in ("hpa.yaml", "keda.yaml"):
        (scaler,) = documents(file)
        assert scaler["spec"]["scaleTargetRef"]["name"] == name


def test_envoy_sends_to_the_replicas_and_asks_for_health() -> None:
    """Route, cluster and address fit together, over HTTP/2."""
    resources = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())["static_resources"]
    (cluster,) = resources["clusters"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["cluster"] == cluster["name"] == cluster["load_assignment"]["cluster_name"]
    address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    assert address["socket_address"]["port_value"] == Settings().port
    assert "grpc_health_check" in cluster["health_checks"][0]


def stage(name: str) -> list[str]:
    """Return one stage's instructions, continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("FROM "):
            stages[line.split(" AS ")[1]] = current = []
        current.append(line)
    return stages[name]


def test_the_service_image_is_small_and_nobody() -> None:
    """Numbered user, safe path, health check, and nothing of training in its install."""
    lines = stage("service")
    assert "USER 10001:10001" in lines
    assert any("PYTHONSAFEPATH=1" in line for line in lines)
    assert any(line.startswith("HEALTHCHECK ") and '"health"' in line for line in lines)
    assert not any(line.startswith("RUN ") for line in lines)
    assert not any("training]" in line for line in stage("build"))
    assert any("[training]" in line for line in stage("build-training"))


def test_the_image_is_built_from_all_that_is_installed() -> None:
    """Every package of the project, and nothing else, reaches the build and its context."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools["packages"]["find"]["include"] == ["reluguard*"]
    links = {link.name: link.readlink() for link in (ROOT / "reluguard").iterdir()
             if link.is_symlink()}  # fmt: skip
    assert links == {name: Path("..", name) for name in links}
    packages = {"reluguard", *links}
    assert packages == {file.parent.name for file in ROOT.glob("*/__init__.py")}
    copied = [line.split()[1:-1] for line in stage("build") if line.startswith("COPY ")]
    names = {name for line in copied for name in line}
    assert names == packages | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == names


@pytest.mark.slow
def test_the_service_image_installs_and_serves(tmp_path: Path, pair: Any) -> None:
    """Its steps, replayed in a clean environment: no torch comes along, and the server answers."""
    source, target = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    for line in stage("build"):
        kind, _, rest = line.partition(" ")
        if kind == "COPY":
            *names, place = rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, source / place, symlinks=True, ignore=ignore)
                else:
                    shutil.copy(ROOT / name, source / place)
        elif kind == "RUN":
            command = shlex.split(rest.replace("/opt/reluguard", str(target)))
            command[0] = sys.executable if command[0] == "python" else command[0]
            subprocess.run(command, cwd=source, check=True, timeout=280)
    shutil.rmtree(source)
    python = target / "bin" / "python"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True
    )
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    unwanted = {"torch", "torchvision", "scikit-learn", "scipy", "matplotlib", "tritonclient"}
    assert not installed & unwanted
    (tmp_path / "service.py").write_text("raise SystemExit('shadowed')")
    environ = {
        "PATH": f"{target / 'bin'}:/usr/bin:/bin",
        "PYTHONSAFEPATH": "1",
        "RELUGUARD_MODEL": str(pair.model),
        "RELUGUARD_GUARD": str(pair.guard),
        "RELUGUARD_PORT": "0",
        "RELUGUARD_METRICS_PORT": "none",
        "RELUGUARD_THREADS": "1",
    }
    with subprocess.Popen(
        ["reluguard", "serve"],
        executable=target / "bin" / "reluguard",
        cwd=tmp_path,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if "serving on" in line:
                    break
            else:
                pytest.fail("".join(lines))
            address = re.search(r"serving on ([^,]+),", lines[-1])
            assert address
            assert is_healthy(address[1])
            asked = [str(target / "bin" / "reluguard"), "health", "--address", address[1]]
            subprocess.run(asked, cwd=tmp_path, env=environ, check=True)
            with Client(address[1]) as client:
                import numpy as np

                assert len(client.inspect(np.zeros((3, 12, 12, 3), np.uint8))) == 3
        finally:
            server.terminate()
            assert server.wait(30) == 0
