"""How `--help` reads: commands by job, options by what they are about, nothing cut, examples last.

The classes below are what typer builds commands and groups from. They print plain text, so a pipe,
a log and a narrow terminal show the same.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from reluguard.commands.examples import EXAMPLES

__all__ = ["JOBS", "TOPICS", "Command", "Group", "first_sentence", "sorted_by"]

# The words after `reluguard`, by what one wants to do, in the order of `--help`.
JOBS: Mapping[str, tuple[str, ...]] = {
    "See what it does": ("demo", "try"),
    "Make a guard and judge it": ("fit", "evaluate", "redteam", "bench"),
    "Use it": ("score", "serve", "export", "health", "status"),
    "Keep it up to date": ("label", "retrain", "promote", "shadow", "rollback"),
    "Look inside": ("explain", "analyze", "harden"),
}

# Options by what they are about, in the order in which a command's help shows them.
TOPICS: Mapping[str, tuple[str, ...]] = {
    "What it works on": (
        "--model", "--weights", "--input-shape", "--guard", "--data", "--out", "--shelf",
        "--captures", "--models",
        "--challenger", "--other", "--new", "--server", "--address", "--service", "--token",
        "--file", "--format",
    ),
    "What it tries": (
        "--recipe", "--attack", "--benign", "--twin", "--surrogate", "--budget", "--standard",
        "--steps", "--restarts", "--queries", "--asking", "--attacker-guard", "--ladders",
        "--rounds", "--refitted", "--papers",
        "--pairwise", "--batch", "--leave-out", "--matrix-rows", "--refit", "--share",
        "--most-per-source", "--margin", "--most-contradicted", "--sources",
    ),
    "Which images": ("--limit", "--train", "--trained-on", "--held-out", "--fit-data", "--classes"),
    "How a picture becomes the model's input": (
        "--preprocessing", "--preprocessing-as-given", "--output", "--scale", "--mean", "--std",
        "--bgr",
    ),
    "How strict it is": ("--target-fpr", "--prevalence", "--policy", "--max-overhead"),
    "When it looks again": ("--second", "--looks", "--second-model"),
    "Where it listens": ("--host", "--port", "--metrics-port", "--http-port", "--reflection"),
    "Who may ask": (
        "--tls-certificate", "--tls-key", "--tls-client-ca", "--tokens", "--ca", "--certificate",
        "--server-name", "--watch",
    ),
    "For the record": (
        "--why", "--who", "--labeller", "--replace", "--shadow", "--clear", "--force", "--key",
        "--publish", "--unlabelled", "--source", "--request",
    ),
    "How it runs": (
        "--seed", "--threads", "--workers", "--processes", "--provider", "--engine", "--work",
        "--fit-work",
        "--config", "--check-config", "--set", "--json", "--version", "--help",
    ),
}  # fmt: skip
OTHER_COMMANDS = "More commands"
OTHER_OPTIONS = "More options"
_WIDTH = 80
_COLUMN = 27  # where meanings begin


class Command(TyperCommand):
    """A command whose help shows options by topic, and examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; an empty value is refused, as an unset shell variable gives."""
        for before, word in zip(("", *args), args, strict=False):
            name, equals, value = word.partition("=")
            if word == "" or (word.startswith("--") and equals and not value):
                option = name or before
                where = f" for {option}" if option.startswith("-") else ""
                raise typer.BadParameter(
                    f"expected a value{where}, got an empty one: is a variable of the shell unset?",
                    ctx=ctx,
                )
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """Return the help, as text."""
        records = [
            (param.opts[0], *record)
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        ]
        words = [record for record in records if not record[0].startswith("-")]
        options = [record for record in records if record[0].startswith("-")]
        parts = [_usage(self, ctx), _told(self.help)]
        if words:
            parts.append(_section("Words", [record[1:] for record in words]))
        topics = sorted_by(TOPICS, [record[0] for record in options], OTHER_OPTIONS)
        for topic, names in topics.items():
            chosen = [record[1:] for name in names for record in options if record[0] == name]
            parts.append(_section(topic, chosen))
        parts.append(_examples(_path(ctx)))
        return "\n\n".join(part for part in parts if part)


class Group(TyperGroup):
    """A group whose help shows its commands by job, each with its whole first sentence."""

    def get_help(self, ctx: Any) -> str:
        """Return the help, as text."""
        parts = [_usage(self, ctx), _told(self.help)]
        jobs = JOBS if not _path(ctx) else {"Commands": tuple(self.commands)}
        for job, names in sorted_by(jobs, list(self.commands), OTHER_COMMANDS).items():
            told = [(name, first_sentence(self.commands[name].help or "")) for name in names]
            parts.append(_section(job, told))
        options = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        parts.append(_section("Options", [record for record in options if record]))
        parts.append(_examples(_path(ctx)))
        return "\n\n".join(part for part in parts if part)


def sorted_by(
    topics: Mapping[str, tuple[str, ...]], names: Sequence[str], other: str
) -> dict[str, list[str]]:
    """Return names below the topics they belong to, in the topics' order; unknown ones last."""
    found = {
        topic: [name for name in members if name in names] for topic, members in topics.items()
    }
    known = {name for members in topics.values() for name in members}
    found[other] = [name for name in names if name not in known]
    return {topic: members for topic, members in found.items() if members}


def first_sentence(text: str) -> str:
    """Return what stands before the first blank line, in one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def _path(ctx: Any) -> str:
    """Return the words between `reluguard` and the options."""
    return " ".join(str(ctx.command_path).split()[1:]).removeprefix("-m reluguard").strip()


def _usage(command: Any, ctx: Any) -> str:
    return _wrapped(" ".join(["Usage:", ctx.command_path, *command.collect_usage_pieces(ctx)]), "")


def _told(text: str | None) -> str:
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(_wrapped(" ".join(part.split()), "  ") for part in paragraphs)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ",
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"{title}:"]
    for name, meaning in rows:
        told = _wrapped(" ".join(meaning.split()), " " * _COLUMN).splitlines()
        if told and len(name) + 4 <= _COLUMN:
            told[0] = f"  {name:<{_COLUMN - 2}}{told[0].strip()}"
        else:
            lines.append(f"  {name}")
        lines += told
    return "\n".join(lines)


def _examples(path: str) -> str:
    lines = EXAMPLES.get(path, ())
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)]) if lines else ""
