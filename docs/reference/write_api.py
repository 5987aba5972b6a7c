"""Writes api.md beside it from the docstrings of the public names: `make reference`."""

import ast
import inspect
import textwrap
from pathlib import Path

import reluguard

PAGE = Path(__file__).with_name("api.md")

GROUPS = {
    "Ask in process": ["Guard", "GuardedSession", "GuardedModule", "Verdict", "Verdicts"],
    "Ask a server": ["Client", "AsyncClient"],
    "Fit a guard and judge it": ["fit", "score", "evaluate", "redteam", "analyze", "retrain"],
    "What comes of it": [
        "ReportCard", "Evaluation", "RedTeamReport", "Retrained", "Progress", "Step",
    ],
    "Write an attack": ["Attack", "AttackResult", "Budget", "Goal", "Victim"],
    "Errors to catch": [
        "DetectorError", "ImageError", "ImageTooLargeError", "ModelError", "NoTapsError",
        "GuardError", "GuardFormatError", "ModelMismatchError", "SettingsError", "HeldError",
        "DataError", "TwinError", "AttackError", "WorkerError", "AnalysisError", "CallError",
    ],
}  # fmt: skip

HEAD = """# API reference

Every public name, as `from reluguard import Guard`. What is not on this page may change without
notice. Shapes: N images of H rows, W columns and C channels; K classes; L taps. A name is loaded
when it is first asked for: those of training (`Attack` and its kin, `GuardedModule`) need
`pip install 'reluguard[training]'`.

`docs/reference/write_api.py` writes this page from the docstrings, and a test holds it to them.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def written() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"\n## {title}\n")
        parts += [_entry(name) for name in names]
    return "\n".join(parts)


def _entry(name: str) -> str:
    thing = getattr(reluguard, name)
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, Function):
        return f"### {name}\n\n{_code(_call(name, node, 0))}\n{_text(thing)}\n"
    assert isinstance(node, ast.ClassDef)
    if issubclass(thing, Exception):
        base = thing.__bases__[0].__name__
        kind = f", a kind of `{base}`" if base in reluguard.__all__ else ""
        return f"### {name}\n\n`{name}`{kind}. {_text(thing)}\n"
    methods = {**_lent(thing), **{m.name: m for m in node.body if isinstance(m, Function)}}
    parts = [f"### {name}\n", _code(_construction(name, node, methods)), f"{_text(thing)}\n"]
    for method, item in methods.items():
        told = inspect.getdoc(getattr(thing, method))
        if told and (method == "__call__" or not method.startswith("_")):
            parts.append(f"#### {name}.{method}\n")
            if not _is_property(item):
                parts.append(_code(_call(method, item, 1)))
            parts.append(f"{_plain(told)}\n")
    return "\n".join(parts)


def _lent(thing: type) -> dict[str, Function]:
    """Return the methods that a class has of one that is made to lend them."""
    lenders = [base for base in thing.__mro__[1:] if base.__name__ == "Shown"]
    nodes = [ast.parse(inspect.getsource(base)).body[0] for base in lenders]
    return {
        item.name: item
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, Function)
    }


def _construction(name: str, node: ast.ClassDef, methods: dict[str, Function]) -> str:
    if "__init__" in methods:
        return _call(name, methods["__init__"], 1, returns=False)
    fields = [
        ast.unparse(item)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
    ]
    bases = [ast.unparse(base) for base in node.bases]
    return _folded(f"class {name}", bases, "") if bases or not fields else _folded(name, fields, "")


def _call(name: str, node: Function, skipped: int, *, returns: bool = True) -> str:
    """Return a call as its source has it, without `self` or `cls`."""
    given = node.args
    fallbacks = [None] * (len(given.args) - len(given.defaults)) + list(given.defaults)
    words = [_word(a, d) for a, d in zip(given.args, fallbacks, strict=True)][skipped:]
    if given.kwonlyargs:
        words.append("*")
    words += [_word(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        words.append(f"**{_word(given.kwarg, None)}")
    before = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    after = f" -> {ast.unparse(node.returns)}" if returns and node.returns else ""
    return _folded(before + name, words, after.replace("'", ""))


def _word(argument: ast.arg, fallback: ast.expr | None) -> str:
    annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{annotation}" + (f" = {ast.unparse(fallback)}" if fallback else "")


def _folded(name: str, words: list[str], after: str) -> str:
    line = f"{name}({', '.join(words)}){after}"
    if len(line) <= 90:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){after}"])


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


def _text(thing: object) -> str:
    return _plain(inspect.getdoc(thing) or "")


def _plain(told: str) -> str:
    """Return a docstring as Markdown: its lists as lists, its example as code."""
    lines, section = [], ""
    for line in told.splitlines():
        if line in {"Args:", "Attributes:", "Raises:", "Example:"}:
            section = line
            lines += [f"{line[:-1]}:", ""]
            if section == "Example:":
                lines.append("```text")
        elif section == "Example:":
            lines.append(line.removeprefix("    ").replace("  # doctest: +SKIP", ""))
        elif section and line.startswith("    ") and line[4:5] != " ":
            name, _, rest = line.strip().partition(":")
            lines.append(f"- `{name}`:{rest}")
        elif section and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    if section == "Example:":
        lines.append("```")
    return "\n".join(lines)


def _is_property(node: Function) -> bool:
    return any(ast.unparse(one) == "property" for one in node.decorator_list)


if __name__ == "__main__":
    PAGE.write_text(written())
