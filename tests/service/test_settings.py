from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.errors import SettingsError
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.checking import problems
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import StartError
from reluguard.service.settings import Settings
from tests.looking import looking_twice


def test_every_field_comes_from_the_environment() -> None:
    """Names in upper case behind the prefix set the field with its type."""
    environ = {
        "RELUGUARD_MODEL": "m.onnx",
        "RELUGUARD_GUARD": "g",
        "RELUGUARD_PORT": "0",
        "RELUGUARD_METRICS_PORT": "none",
        "RELUGUARD_DRAIN_S": "2.5",
        "RELUGUARD_REFLECTION": "true",
        "RELUGUARD_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider",
        "RELUGUARD_POLICY": "reject",
        "PATH": "/bin",
    }
    assert Settings.from_env(environ) == Settings(
        model=Path("m.onnx"),
        guard=Path("g"),
        port=0,
        metrics_port=None,
        drain_s=2.5,
        reflection=True,
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        policy="reject",
    )


def test_an_override_wins_unless_it_is_none() -> None:
    """The command line stands above the environment."""
    settings = Settings.from_env({"RELUGUARD_PORT": "1", "RELUGUARD_MAX_ROWS": "8"}, port=2,
                                 max_rows=None)  # fmt: skip
    assert (settings.port, settings.max_rows) == (2, 8)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RELUGUARD_PROT": "1"}, "unknown environment variable RELUGUARD_PROT"),
        ({"RELUGUARD_PORT": "x"}, "expected a whole number in RELUGUARD_PORT, got 'x'"),
        ({"RELUGUARD_PORT": "tcp://10.0.0.1:50051"}, "enableServiceLinks: false"),
        ({"RELUGUARD_DRAIN_S": "soon"}, "expected a number in RELUGUARD_DRAIN_S, got 'soon'"),
        ({"RELUGUARD_DRAIN_S": "nan"}, "expected drain_s of 0 or more, got nan"),
        ({"RELUGUARD_REFLECTION": "maybe"}, "expected true or false in RELUGUARD_REFLECTION"),
        ({"RELUGUARD_PORT": "65536"}, "expected port in 0..65535, got 65536"),
        ({"RELUGUARD_POLICY": "block"}, "expected policy one of annotate, reject, shadow"),
        ({"RELUGUARD_FAIL": "half"}, "expected fail one of open, closed, got 'half'"),
        ({"RELUGUARD_MAX_ROWS": "0"}, "expected max_rows of 1 or more, got 0"),
        ({"RELUGUARD_MAX_QUEUE_ROWS": "9"}, "expected max_queue_rows of at least max_rows, 256"),
        ({"RELUGUARD_MAX_WAIT_S": "0"}, "expected max_wait_s of more than 0, got 0.0"),
        ({"RELUGUARD_MODEL": "m"}, "expected a guard beside the model"),
        ({"RELUGUARD_MODELS": "d", "RELUGUARD_NAME": "n"}, "either models, or model and guard"),
        ({"RELUGUARD_TLS_KEY": "k"}, "expected tls_certificate and tls_key together"),
        ({"RELUGUARD_TLS_CLIENT_CA": "c"}, "tls_client_ca needs tls_certificate"),
        ({"RELUGUARD_REPOSITORY_CONTROL": "1"}, "repository_control needs tokens"),
        ({"RELUGUARD_LIKELIHOOD_STEP": "2"}, r"expected likelihood_step in \(0, 1\], got 2.0"),
    ],
)
def test_a_setting_without_meaning_is_named(environ: dict[str, str], message: str) -> None:
    """Each refusal says what was expected and what came."""
    with pytest.raises(SettingsError, match=message):
        Settings.from_env(environ)


def test_an_unknown_override_is_an_error() -> None:
    """A misspelt keyword is not passed over."""
    with pytest.raises(SettingsError, match="unknown settings: prot"):
        Settings.from_env({}, prot=1)


def test_a_configuration_file_has_every_setting(tmp_path: Path) -> None:
    """Each by its name and in its type; variables win over the file, options over both."""
    file = tmp_path / "serve.toml"
    file.write_text(
        'model = "m.onnx"\nguard = "/g"\nport = 1\ndrain_s = 2\ncapture_images = true\n'
        'policy = "reject"\nproviders = ["CPUExecutionProvider"]\nmetrics_port = "none"\n'
    )
    found = Settings.from_env({"RELUGUARD_PORT": "2"}, config=file, max_rows=3)
    assert (found.model, found.guard) == (tmp_path / "m.onnx", Path("/g"))
    assert (found.port, found.max_rows, found.drain_s) == (2, 3, 2.0)
    assert (found.capture_images, found.policy, found.metrics_port) == (True, "reject", None)
    assert found.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = ", "can't be read"),
        ('port = "1"', "expected a whole number for port in .*, got '1'"),
        ("port = true", "expected a whole number for port"),
        ("drain_s = true", "expected a number for drain_s"),
        ("reflection = 1", "expected true or false for reflection"),
        ("model = 1", "expected a path for model"),
        ("name = 1", "expected a text for name"),
        ("providers = [1]", "expected a list of texts for providers"),
        ('policy = "maybe"', "expected policy one of"),
        ('port = "none"', "expected a whole number for port"),
    ],
)
def test_a_wrong_configuration_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    """The file, the setting, what was expected and what came."""
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.from_env({}, config=file)
    with pytest.raises(SettingsError, match="can't be read"):
        Settings.from_env({}, config=tmp_path / "none.toml")


def test_a_configuration_is_checked_with_the_network_that_looks_again(
    pair: Any, pairs: Callable[..., Any], tmp_path: Path
) -> None:
    """Its file is a setting: the check opens what the server would."""
    other = pairs(tmp_path / "other", seed=4)
    twice = looking_twice(pair.model, pair.guard, tmp_path / "guard", other=other.model)
    away = tmp_path / "away"
    away.mkdir()
    network = other.model.rename(away / "another.onnx")
    settings = Settings(model=pair.model, guard=twice, metrics_port=None)
    (found,) = problems(settings)  # by the name it had, beside the model lies another
    assert "the second look was fitted with a network of SHA-256" in found
    assert problems(replace(settings, second_model=network)) == []
    assert problems(replace(settings, looks="first")) == []


def test_no_number_is_too_large_for_what_takes_it(guard: Guard) -> None:
    """Each that is taken lets the server start; each that would not is told by its name."""
    largest: dict[str, Any] = {}
    for name, hint in get_type_hints(Settings).items():
        kinds = {hint, *get_args(hint)} & {int, float}
        if not kinds:
            continue
        huge: dict[str, Any] = {name: 10**30 if int in kinds else 1e30}
        if name == "max_rows":
            huge["max_queue_rows"] = 10**30  # of which they are at most all
        with pytest.raises(SettingsError, match=f"expected {name} "):
            Settings(**huge)
        if name.endswith("_s") and "calls" not in name and "rows" not in name:
            largest[name] = 2**31 - 1
    quick = {"drain_delay_s": 0.0, "max_delay_s": 0.0}
    with running(guard, **(largest | quick)) as server:
        assert is_healthy(server.address)


def test_a_configuration_is_checked_without_a_start(pair: Any, tmp_path: Path) -> None:
    """Models are opened and replayed, token files read; each problem is a sentence."""
    good = Settings(model=pair.model, guard=pair.guard, metrics_port=None)
    assert problems(good) == []
    assert problems(Settings()) == ["expected at least one model to serve, got none"]
    (tmp_path / "tokens.toml").write_text("[[")
    (found,) = problems(replace(good, tokens=tmp_path / "tokens.toml"))
    assert "the token file" in found
    (found,) = problems(replace(good, guard=tmp_path))
    assert "expected a guard in" in found
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for changes, message in (
        ({"capture": tmp_path / "nowhere"}, "that can be written"),
        ({"capture": tmp_path / "tokens.toml" / "inside"}, "that can be written"),
        ({"decision_log": tmp_path}, "is a folder"),
        ({"looks": "always"}, "expected a guard with a second look"),
        ({"second_model": pair.model, "looks": "always"}, "expected a guard with a second look"),
    ):
        (found,) = problems(replace(good, **changes))
        assert message in found
        with pytest.raises(StartError), running(replace(good, port=0, **changes)):
            pass  # what is told is what would be
    file = tmp_path / "serve.toml"
    file.write_text(f'model = "{pair.model}"\nguard = "{pair.guard}"\n', encoding="utf-8-sig")
    done = CliRunner().invoke(app, ["serve", "--config", str(file), "--check-config"])
    assert (done.exit_code, done.stdout) == (0, "the settings are right\n")
    done = CliRunner().invoke(
        app, ["serve", "--model", str(file), "--guard", "x", "--check-config"]
    )
    assert done.exit_code == 1
