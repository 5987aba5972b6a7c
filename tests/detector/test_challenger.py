"""Champion and challenger in one pass: the first stays what it was, the second is checked."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.errors import GuardError, ModelMismatchError, SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.signature import sign
from reluguard.detector.verdict import Verdicts


@pytest.fixture(scope="module")
def rival(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory,
          make_guard: Callable[..., Path]) -> Path:  # fmt: skip
    """Another guard of the same model."""
    return make_guard(tiny_model, tmp_path_factory.mktemp("rival") / "guard", seed=3)


@pytest.fixture(scope="module")
def images(make_images: Callable[..., Images]) -> Images:
    return make_images(60, seed=11)


def assert_same(a: Verdicts, b: Verdicts) -> None:
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.outputs.keys() == b.outputs.keys()
    for name, output in a.outputs.items():
        np.testing.assert_array_equal(output, b.outputs[name], err_msg=name)


@pytest.mark.parametrize("readings", [False, True])
def test_each_guard_says_what_it_says_alone(
    tiny_model: Path, tiny_guard: Path, rival: Path, images: Images, readings: bool
) -> None:
    """The champion's verdicts and outputs bit for bit, and the challenger's score and verdict."""
    champion = Guard.open(tiny_model, tiny_guard, threads=1, readings=readings)
    alone = Guard.open(tiny_model, rival, threads=1).inspect(images)
    both = Guard.open(tiny_model, tiny_guard, threads=1, readings=readings, challenger=rival)
    verdicts = both.inspect(images)
    assert_same(verdicts, champion.inspect(images))
    assert champion.inspect(images).challenge is None
    assert verdicts.challenge is not None
    np.testing.assert_array_equal(verdicts.challenge.score, alone.score)
    np.testing.assert_array_equal(verdicts.challenge.is_adversarial, alone.is_adversarial)
    assert (verdicts.is_adversarial != alone.is_adversarial).any()  # else this shows little
    assert (verdicts.readings is not None) == readings
    assert both.challenger is not None
    assert both.challenger.digest == read_guard(rival).digest


def test_a_challenger_of_another_model_is_refused(
    tiny_model: Path, tiny_guard: Path, tmp_path: Path,
    make_network: Callable[..., object], make_guard: Callable[..., Path],
) -> None:  # fmt: skip
    """It was fitted to other patterns."""
    model = tmp_path / "other.onnx"
    model.write_bytes(make_network(seed=5).SerializeToString())  # type: ignore[attr-defined] # ONNX
    other = make_guard(model, tmp_path / "other")
    with pytest.raises(ModelMismatchError, match="was fitted to the model"):
        Guard.open(tiny_model, tiny_guard, challenger=other)


def test_a_challenger_that_takes_images_in_another_way_is_refused(
    tiny_model: Path, tiny_guard: Path, rival: Path, tmp_path: Path
) -> None:
    """One tensor goes in, so both must agree on how images become one."""
    found = read_guard(rival)
    spec = replace(found.manifest.input, scale=1.0)
    odd = write_guard(
        tmp_path / "odd",
        manifest=replace(found.manifest, input=spec),
        head=found.head,
        golden=found.golden,
    )
    with pytest.raises(GuardError, match="expected a challenger with the champion's input"):
        Guard.open(tiny_model, tiny_guard, challenger=odd.path)


def test_the_challenger_is_replayed_too(
    tiny_model: Path, tiny_guard: Path, rival: Path, tmp_path: Path
) -> None:
    """Golden scores that are not its own are noticed, and laid at its door."""
    found = read_guard(rival)
    golden = replace(found.golden, score=found.golden.score + np.float32(2))
    bad = write_guard(tmp_path / "bad", manifest=found.manifest, head=found.head, golden=golden)
    with pytest.raises(GuardError, match=r"the challenger's golden replay failed: .* off by 2"):
        Guard.open(tiny_model, tiny_guard, challenger=bad.path)


def test_only_signed_guards_open_where_a_key_is_configured(
    tiny_model: Path, tiny_guard: Path, rival: Path, tmp_path: Path
) -> None:
    """Champion and challenger alike: unsigned, or signed by somebody else, is refused."""
    pem = {}
    for name in ("ours", "theirs"):
        key = Ed25519PrivateKey.generate()
        pem[name] = tmp_path / f"{name}.pem"
        pem[name].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pem[f"{name}.pub"] = tmp_path / f"{name}.pub"
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        pem[f"{name}.pub"].write_bytes(public)
    places = {name: tmp_path / name for name in ("signed", "unsigned", "foreign", "second")}
    for name, place in places.items():
        shutil.copytree(rival if name == "second" else tiny_guard, place)
    for name, key_name in (("signed", "ours"), ("second", "ours"), ("foreign", "theirs")):
        sign(read_guard(places[name]), pem[key_name])

    def opened(guard: str, challenger: str | None = None) -> Guard:
        other = None if challenger is None else places[challenger]
        return Guard.open(
            tiny_model, places[guard], challenger=other, public_key=pem["ours.pub"], threads=1
        )

    assert opened("signed", "second").challenger is not None
    for guard, challenger, message in (
        ("unsigned", None, "expected a signed guard"),
        ("foreign", None, "the signature of .* is not that of"),
        ("signed", "unsigned", "expected a signed guard"),
        ("signed", "foreign", "the signature of .* is not that of"),
    ):
        with pytest.raises(GuardError, match=message):
            opened(guard, challenger)
    with pytest.raises(SettingsError, match="expected an Ed25519 public key"):
        Guard.open(tiny_model, places["signed"], public_key=pem["ours"])
