"""Plain values: what was written reads back, older and newer files open, nonsense is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from reluguard.detector.errors import GuardError
from reluguard.detector.plain import UNSAID, Plain, named


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf(Plain):
    """One of each simple kind."""

    whole: int
    real: float
    word: str
    flag: bool
    either: Literal["a", "b"] = "a"
    maybe: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Plain):
    """Leaves in every way they can hang."""

    one: Leaf
    many: tuple[Leaf, ...] = ()
    by_name: Mapping[str, Mapping[str, Leaf]] = field(default_factory=dict)
    origin: str = field(default="here", metadata=named("from"))
    quiet: Leaf | None = field(default=None, metadata=UNSAID)


LEAF = Leaf(whole=1, real=0.5, word="x", flag=True, maybe=2.0)


def test_what_was_written_reads_back() -> None:
    """Key by key, in the order of the fields, under the names that JSON has."""
    tree = Tree(one=LEAF, many=(LEAF,), by_name={"a": {"b": LEAF}}, quiet=LEAF)
    stored = tree.to_json()
    assert list(stored) == ["one", "many", "by_name", "from", "quiet"]
    assert Tree.from_json(stored) == tree
    assert "quiet" not in Tree(one=LEAF).to_json()


def test_older_and_newer_files_open() -> None:
    """What is missing takes its default, what is unknown is passed over."""
    assert Tree.from_json({"one": LEAF.to_json(), "new": {"x": 1}}) == Tree(one=LEAF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": True}, r"another kind of value in Leaf\.whole, got bool"),
        ({"whole": 1.5}, r"in Leaf\.whole, got float"),
        ({"real": "much"}, r"in Leaf\.real, got str"),
        ({"flag": 1}, r"in Leaf\.flag, got int"),
        ({"either": "c"}, r"in Leaf\.either, got str"),
        ({"maybe": []}, r"in Leaf\.maybe, got list"),
    ],
)
def test_a_value_of_another_kind_is_told(change: dict[str, Any], message: str) -> None:
    """With the place it was found in."""
    with pytest.raises(GuardError, match=message):
        Leaf.from_json(LEAF.to_json() | change)


def test_what_is_no_mapping_is_told() -> None:
    """A word where a mapping should be, and a key that must be there."""
    with pytest.raises(GuardError, match="expected a Leaf by key, got str"):
        Tree.from_json({"one": "nothing"})
    with pytest.raises(GuardError, match=r"another kind of value in Tree\.many, got int"):
        Tree.from_json({"one": LEAF.to_json(), "many": 3})
    with pytest.raises(GuardError, match=r"another kind of value in Tree\.by_name, got list"):
        Tree.from_json({"one": LEAF.to_json(), "by_name": []})
    with pytest.raises(GuardError, match="expected one in the stored Tree, it is missing"):
        Tree.from_json({})
