"""Writes a page for each notebook, as it was run last, each time the site is built: `make docs`.

Nothing is run here: what cells printed and drew stands in the notebook.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
__all__ = ["write_notebooks"]


def write_notebooks() -> None:
    """Write each page and picture that would change."""
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(_parts(notebook, pictures)) + "\n"
        files = {f"{notebook.stem}.md": text.encode(), **pictures}
        for name, data in files.items():
            file = NOTEBOOKS / name
            if not file.is_file() or file.read_bytes() != data:
                file.write_bytes(data)


def _parts(notebook: Path, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the page's parts, and put what cells drew among the pictures."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source.replace(".ipynb)", ".md)")
            if source.startswith("# "):
                yield f"This page is a notebook: {{download}}`{notebook.name}`."
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            yield from _output(output, notebook.stem, pictures)


def _output(output: Any, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if output["output_type"] == "stream":
        yield f"```text\n{''.join(output['text']).rstrip()}\n```"
    elif "image/png" in data:
        picture = f"{name}-{len(pictures) + 1}.png"
        pictures[picture] = base64.b64decode("".join(data["image/png"]))
        yield f"![What the cell above drew]({picture})"
    elif "text/plain" in data:
        yield f"```text\n{''.join(data['text/plain'])}\n```"
