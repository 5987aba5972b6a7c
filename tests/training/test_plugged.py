"""Attacks, harmless changes and recipes of other distributions, and of a file of one's own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from reluguard.detector.errors import DetectorError
from reluguard.training import attacks, changes, recipes
from reluguard.training.attacks import ATTACKS, FGSM, attack_named
from reluguard.training.changes import GaussianNoise, benign_named
from reluguard.training.errors import AttackError, DataError
from reluguard.training.recipes import recipe_named
from tests.training.fitting import Order

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
from dataclasses import dataclass

from reluguard.training.attacks import FGSM
from reluguard.training.changes import Change
from reluguard.training.head.fit import HeadSettings
from reluguard.training.recipes import Portion, Recipe


@dataclass(frozen=True)
class Negative(Change):
    """The picture's negative."""

    name = "negative"

    def apply(self, images, generator):
        return 255 - images


def attack():
    return FGSM(size=48.0)


def recipe():
    return Recipe(
        name="theirs",
        attacks=(Portion(attack()),),
        benign=(Portion(Negative()),),
        head=HeadSettings(units=16, epochs=3, batch=64),
        fit=0.5,
        calibrate=0.3,
        test=0.2,
    )


number = 7
'''
POINTS = """
[reluguard.attacks]
their-attack = {module}:attack
number = {module}:number
gone = {module}:gone
absent = {module}_absent:attack
fgsm-linf-1 = {module}:attack
[reluguard.harmless]
negative = {module}:Negative
[reluguard.recipes]
theirs = {module}:recipe
"""


def install(folder: Path, name: str) -> Path:
    """Lay a distribution of one module into a folder as an installer does."""
    (folder / f"{name}.py").write_text(MODULE, encoding="utf-8")
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS.format(module=name))
    return folder


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sys.path with a distribution that brings one of each."""
    monkeypatch.syspath_prepend(str(install(tmp_path, "words_theirs")))
    monkeypatch.delitem(sys.modules, "words_theirs", raising=False)
    return tmp_path


@pytest.mark.usefixtures("theirs")
def test_another_distribution_brings_one_of_each() -> None:
    """Its attack, harmless change and recipe go by the names of its entry points."""
    assert attack_named("their-attack") == FGSM(size=48.0)
    assert benign_named("negative").name == "negative"
    assert recipe_named("theirs").name == "theirs"
    assert attack_named("fgsm-linf-1") == ATTACKS["fgsm-linf-1"]()  # our own names stay our own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "expected number of words_theirs 1.2 to be an Attack, got int"),
        ("gone", "the attack gone of words_theirs 1.2 failed.* has no attribute 'gone'"),
        ("absent", "the attack absent of words_theirs 1.2 failed.*No module named"),
        ("their-atack", "; did you mean 'their-attack'"),
    ],
)
@pytest.mark.usefixtures("theirs")
def test_what_is_wrong_with_it_names_the_distribution(name: str, message: str) -> None:
    """A plugin that fails or is of another kind is told by name, distribution and version."""
    with pytest.raises(AttackError, match=message):
        attack_named(name)


def test_two_of_one_name_are_told_apart(theirs: Path) -> None:
    """Neither wins; both are named, and how each is meant."""
    install(theirs, "words_others")
    with pytest.raises(AttackError) as told:
        attack_named("their-attack")
    assert str(told.value) == (
        "expected one attack called 'their-attack', words_others 1.2 and words_theirs 1.2 have one "
        "each: name the one that is meant as words_others:attack or words_theirs:attack"
    )


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`folder/mine.py:name` names what is in a file, wherever one works; errors say which file."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "words_mine.py"
    file.write_text(MODULE, encoding="utf-8")
    assert recipe_named(f"{file}:recipe").name == "theirs"
    assert attack_named(f"{file}:attack") == FGSM(size=48.0)
    assert benign_named(f"{file}:Negative").name == "negative"
    cases: list[tuple[str, type[DetectorError], str]] = [
        (f"{file}:recipes", DataError, "words_mine.py has no recipes, only Negative, attack"),
        (f"{file.with_name('word_mine.py')}:recipe", DataError, "did you mean '.*words_mine.py'"),
        (f"{tmp_path / 'my-own.py'}:recipe", DataError, "file.py:name, both of letters, digits"),
        (f"{file}:number", DataError, "to be a Recipe, got int"),
    ]
    for text, kind, message in cases:
        with pytest.raises(kind, match=message):
            recipe_named(text)
    other = tmp_path / "other" / "words_mine.py"
    other.parent.mkdir()
    other.write_text(MODULE, encoding="utf-8")
    with pytest.raises(DataError, match="is called so too: give yours another name"):
        recipe_named(f"{other}:recipe")
    sys.modules.pop("words_mine", None)


@pytest.mark.usefixtures("theirs")
def test_a_guard_opens_without_what_it_was_made_with(
    digits_model: Path, digits_file: Path, tmp_path: Path
) -> None:
    """Who serves a guard need not have the distribution whose attacks it was fitted on."""
    order = Order(model=digits_model, data=str(digits_file), out=tmp_path / "g", recipe="theirs")
    fitted = order.run()
    assert "their" in str(fitted.manifest.provenance["recipe"])
    code = (
        "import sys; from reluguard.detector.runtime import Guard; "
        "guard = Guard.open(sys.argv[1], sys.argv[2], threads=1); "
        "assert 'words_theirs' not in sys.modules; "
        "print(len(guard.inspect(guard.artifact.golden.images).score))"
    )
    command = [sys.executable, "-c", code, str(digits_model), str(fitted.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(fitted.golden.images)


def test_the_page_names_the_groups_that_are_looked_in() -> None:
    """What a package's author copies from the how-to page is what is asked for."""
    text = (ROOT / "docs" / "howto" / "own-attack.md").read_text(encoding="utf-8")
    block = text.split("```toml")[1].split("```")[0]
    groups = {attacks.GROUP, changes.GROUP, recipes.GROUP}
    assert set(tomllib.loads(block)["project"]["entry-points"]) == groups


def test_our_own_come_first() -> None:
    """Names of ours need no distribution, and a wrong one lists what there is."""
    assert benign_named("gaussian-2") == GaussianNoise(sigma=2.0)
    with pytest.raises(DataError, match="expected a recipe of default, quick, digits, or"):
        recipe_named("thorough")
