"""What people are shown of the watch: page, sentence, lines, and the same of several processes."""

import dataclasses

import pytest

from reluguard.service.fleet.picture import read_picture, together, write_picture
from reluguard.service.watching.watch import Suspect, WatchStatus
from reluguard.service.web.fetched import in_words
from reluguard.service.web.page import page, whats_wrong
from reluguard.service.web.snapshot import ServerStatus


@pytest.fixture
def status() -> ServerStatus:
    """A server with one caller under suspicion, whose name is out for trouble."""
    suspect = Suspect(caller="<b>east</b>", near=212.3, asked=5120, for_s=820.0)
    watch = WatchStatus(
        mode="refuse", near=50, half_life_s=3600.0, max_bytes=2**24, callers=9, under_suspicion=1,
        suspects=(suspect,),
    )  # fmt: skip
    return ServerStatus(
        state="serving", version="1", when="2026-01-01T00:00", models=(), watch=watch
    )


def test_processes_show_the_one_table_they_share(status: ServerStatus) -> None:
    """A picture is read as it was written, and of two processes' pictures nothing is added."""
    assert read_picture(write_picture(status)) == status
    assert together([status, status]).watch == status.watch


def test_a_suspect_is_what_is_wrong(status: ServerStatus) -> None:
    """Page and command line name the caller, as text; without a suspect nothing is wrong."""
    assert whats_wrong(status)[0].startswith("<b>east</b> asks many near-equal questions, 212 of")
    text = page(status)
    assert "&lt;b&gt;east&lt;/b&gt;" in text
    assert "<b>east</b>" not in text
    assert "counts and refuses near-equal questions" in text
    assert "16.0 MiB at most, no images" in text
    assert in_words(status.to_json())[1:] == [
        "question streams: 9 callers remembered, 1 under suspicion",
        "  <b>east</b>: 212 near-equal questions of late, 5120 in all",
    ]
    assert status.watch is not None
    calm = dataclasses.replace(
        status, watch=dataclasses.replace(status.watch, suspects=(), under_suspicion=0)
    )
    assert whats_wrong(calm) == []


def test_without_a_watch_nothing_is_shown(status: ServerStatus) -> None:
    """A server that does not watch says nothing of question streams."""
    off = dataclasses.replace(status, watch=None)
    assert "Question streams" not in page(off)
    assert len(in_words(off.to_json())) == 1
