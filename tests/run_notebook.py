"""Runs a notebook in a kernel of its own: `python tests/run_notebook.py NOTEBOOK FOLDER [OUT]`.

Works in FOLDER, and fails with the first cell that does. Writes what it printed and drew to OUT.
"""

import sys
from pathlib import Path

import nbclient
import nbformat


def main(file: str, folder: str, out: str | None = None) -> None:
    """Run it."""
    notebook = nbformat.read(file, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": folder}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    if out is not None:
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, out)
    said = sum(len(cell.get("outputs", ())) for cell in notebook.cells)
    print(f"{Path(file).name}: {said} outputs")


if __name__ == "__main__":
    main(*sys.argv[1:])
