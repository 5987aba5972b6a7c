"""What `--help` says: whole sentences, by job and topic, and examples that would be understood."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from reluguard.commands.app import app
from reluguard.commands.examples import EXAMPLES
from reluguard.commands.helping import JOBS, TOPICS, first_sentence, sorted_by
from tests.commanding import Run

GROUP: Any = typer.main.get_group(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with the words that call it."""
    yield "", GROUP
    for name, command in GROUP.commands.items():
        yield name, command
        for inner, below in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", below


CALLS = [path for path, _ in commands()]


def context(path: str) -> Any:
    """Return the context that a command's help is written in."""
    above = GROUP.make_context("reluguard", [], resilient_parsing=True)
    command = GROUP
    for word in path.split():
        command = command.commands[word]
        above = command.make_context(word, [], parent=above, resilient_parsing=True)
    return above


@pytest.mark.parametrize("path", CALLS)
def test_help_is_whole(path: str) -> None:
    """Nothing is cut, no line is wider than a terminal, every option has a meaning."""
    written = context(path).get_help()
    body, _, examples = written.partition("Examples:\n")
    assert "..." not in body.replace("[ARGS]...", "")
    assert max(map(len, body.splitlines())) <= 80
    assert max(map(len, examples.splitlines()), default=0) <= 90
    assert f"reluguard {path}".strip() in body.splitlines()[0]
    for name in re.findall(r"^  (--[a-z-]+)", body, re.MULTILINE):
        (said,) = re.findall(
            rf"^  {name}\b(?: / --[a-z-]+)?(?: <[^>]*>| [A-Z_\[\]]+)?\s+(\S.*)", body, re.MULTILINE
        )
        assert len(said.split()) >= 2, name


def test_every_command_has_a_job_and_an_example() -> None:
    """The first page sorts all commands, and each ends with what one would type."""
    known = {name for names in JOBS.values() for name in names}
    assert set(GROUP.commands) <= known
    assert set(CALLS) <= set(EXAMPLES)


def test_jobs_stand_on_the_first_page() -> None:
    """Commands are listed below what one wants to do, each with its whole first sentence."""
    page = context("").get_help()
    at = [page.index(f"\n{job}:\n") for job in JOBS]
    assert at == sorted(at)
    words = " ".join(page.split())
    for command in GROUP.commands.values():
        assert first_sentence(command.help) in words


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path in CALLS])
def test_examples_are_understood(path: str) -> None:
    """Each example of a command is one that its own options and words allow."""
    for example in EXAMPLES[path]:
        words = re.findall(r'"[^"]*"|\S+', example.replace("\\\n", " "))[1:]
        command = GROUP
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if "--help" not in words:
            made = command.make_context("reluguard", words)
            assert not made.args


def test_an_option_of_no_topic_comes_last() -> None:
    """What nobody sorted is shown all the same, below a heading of its own."""
    found = sorted_by(TOPICS, ["--new-one", "--model"], "More options")
    assert found == {"What it works on": ["--model"], "More options": ["--new-one"]}


def test_no_option_stands_below_two_topics() -> None:
    """Each is shown once."""
    names = [name for members in TOPICS.values() for name in members]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("words", [("--data", ""), ("--data=",), ("--out", "", "--json")])
def test_an_empty_value_is_refused(run: Run, words: tuple[str, ...]) -> None:
    """An unset variable of the shell names no place: not the folder one stands in."""
    ended = run("score", *words)
    assert ended.code == 2
    assert f"a value for {words[0].removesuffix('=')}, got an empty one" in ended.err
