"""What a model is given as, told without importing torch or running anything that is in a file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from reluguard.detector.arrays import DAMAGE

__all__ = ["LIBRARIES", "WORDS", "Kind", "is_lent", "is_named", "is_onnx", "kind_of"]

Kind = Literal["program", "script", "pickle", "safetensors"]
WORDS: Mapping[Kind, str] = {
    "program": "a program that torch.export saved",
    "script": "a TorchScript file",
    "pickle": "a pickle of torch's",
    "safetensors": "a file of weights alone",
}

LIBRARIES = ("torchvision", "timm")


def is_onnx(model: Any) -> bool:
    """Return whether a model is to be read as an ONNX file: a path that is nothing of torch's."""
    if not isinstance(model, (str, Path)) or is_named(str(model)) or is_lent(str(model)):
        return False
    return kind_of(Path(model)) is None


def is_named(text: str) -> bool:
    """Return whether a text names a network of a library."""
    library, colon, _ = text.partition(":")
    return bool(colon) and library in LIBRARIES


def is_lent(text: str) -> bool:
    """Return whether a text names what makes a network in the user's own code, not a file."""
    place, _, name = text.rpartition(":")
    code = Path(place).stem if place.endswith(".py") else place.replace(".", "_")
    return code.isidentifier() and name.isidentifier() and not is_named(text)


def kind_of(path: Path) -> Kind | None:
    """Return what torch wrote into a file, None where it is none of torch's."""
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        return "safetensors"
    if zipfile.is_zipfile(path):
        return _kind_of_archive(path)
    with path.open("rb") as stream:
        first = stream.read(2)
    # a pickle of protocol 2 or newer, as torch.save wrote before it wrote archives
    return "pickle" if len(first) == 2 and first[0] == 0x80 and 2 <= first[1] <= 5 else None


def _kind_of_archive(path: Path) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        return None
    inner = {*names, *(name.partition("/")[2] for name in names)}
    if {"archive_format", "serialized_exported_program.json"} & inner:
        return "program"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "script"
    return "pickle" if "data.pkl" in inner else None
