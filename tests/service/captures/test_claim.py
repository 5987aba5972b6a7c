"""A capture folder is one server's, and stays so when somebody takes it away."""

import os
from pathlib import Path

import pytest

from reluguard.service.captures.claim import Claim
from reluguard.service.errors import StartError


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    """Also while only a process that inherited the handle is left."""
    first = Claim(tmp_path / "captures")
    inherited = os.dup(first.handle)
    first.release()
    with pytest.raises(StartError, match="for this process alone"):
        Claim(first.folder)
    os.close(inherited)
    Claim(first.folder).release()


def test_what_was_taken_away_is_free_and_what_came_is_held(tmp_path: Path) -> None:
    """Although other processes still have the handle of the old lock."""
    claim = Claim(tmp_path / "captures")
    inherited = os.dup(claim.handle)
    assert claim.is_current()
    away = claim.folder.rename(tmp_path / "away")
    assert not claim.is_current()
    claim.renew()
    assert claim.is_current()
    with pytest.raises(StartError, match="for this process alone"):
        Claim(claim.folder)
    Claim(away).release()
    os.close(inherited)
    claim.release()
    assert not claim.is_current()


def test_another_that_came_first_keeps_it(tmp_path: Path) -> None:
    """Renewing says so, and may be tried again."""
    claim = Claim(tmp_path / "captures")
    claim.folder.rename(tmp_path / "away")
    other = Claim(claim.folder)
    with pytest.raises(StartError, match="for this process alone"):
        claim.renew()
    assert not claim.is_current()
    other.release()
    claim.renew()
    assert claim.is_current()
    claim.release()
