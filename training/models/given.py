"""Production models however they are given: what works on them gets an ONNX file. N images.

An ONNX file is taken as it is. Of a torch module, a file that torch wrote or a name in a library
one is exported, and what ONNX Runtime answers is held against what torch answers. The export of a
fit lies in its work folder, so that a fit that was killed goes on with the same bytes, and in the
end beside the guard, under the guard's name and `.onnx`: from then on that file is the production
model, and what is given together with a guard is only checked against it (`of_guard`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from reluguard.detector.artifact import write_file
from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.lock import hold
from reluguard.detector.model import load_production
from reluguard.detector.onnx_file.beside import beside
from reluguard.detector.onnx_file.kinds import is_onnx
from reluguard.training.data.classes import Classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import HowPixels, given_preprocessing, spec_of
from reluguard.training.data.reading import Reading
from reluguard.training.models.opened import ModelOrNone, check_alone, opened_model
from reluguard.training.provenance import ExportedFrom

if TYPE_CHECKING:
    from reluguard.training.models.compared import Compared
    from reluguard.training.models.torch_model import TorchModel

__all__ = ["CHECKED", "MARK", "Given", "Ready", "check_free", "ready_model"]

NAME = "model.onnx"  # in a work folder
MARK = "reluguard_export"  # in the file's metadata
CHECKED = 64  # images on which torch and ONNX Runtime must agree


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A production model and labelled images, and what was said of them, by one who knows both.

    Attributes:
        model: an ONNX file or however else; None for the export beside the guard.
        data: labelled images, as `given_data` takes them.
        guard: of the model, which tells `output`, `preprocessing` and `input_shape`; None without.
        output: which output holds the class scores.
        preprocessing: from files to pixels to the model's input; by default what a model's library
            says of it.
        classes: which class each folder of images is, as `with_classes` takes it; by default what
            the guard knows.
        weights: of a network by name.
        input_shape: of one image in a torch model's input, (C, H, W); by default what the model or
            its library says, or what the images have.
    """

    model: ModelOrNone
    data: Data
    guard: Path | str | None = None
    output: str | None = None
    preprocessing: HowPixels | None = None
    classes: Classes | None = None
    weights: Path | str | None = None
    input_shape: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A model that can be worked on.

    Attributes:
        file: its ONNX file.
        data: the images, read where they had to be.
        preprocessing: what was said of it, or else what the model's library says.
        exported: what it was exported from, None of an ONNX file.
        words: what people should know of it.
    """

    file: Path
    data: Data
    preprocessing: HowPixels | None
    exported: ExportedFrom | None = None
    words: tuple[str, ...] = ()


def ready_model(given: Given, *, folder: Path, out: Path | None = None) -> Ready:
    """Return a model to work on; one that is no ONNX file is exported into a folder.

    Args:
        given: the model, which no guard can stand for here, beside its images.
        folder: for the export, which is made once while model and weights stay the same.
        out: the guard's folder, beside which the export is to lie in the end.

    Raises:
        ModelError: it can't be opened or exported, answers otherwise after export, or something
            else lies where its export is to go.
        DataError: the images can't be read.
        SettingsError: a value has no meaning, or weights or shape are said of an ONNX file.
        HeldError: another process works in the folder.
    """
    model = given.model
    if model is None:
        raise ModelError(
            "expected a model (--model), or a guard (--guard) that has the export of its model "
            "beside it"
        )
    if is_onnx(model):
        check_alone(model, given.weights, given.input_shape)
        return Ready(file=Path(str(model)), data=given.data, preprocessing=given.preprocessing)
    if out is not None:
        check_free(beside(out))
    opened = opened_model(model, given.weights)
    how = opened.preprocessing if given.preprocessing is None else given.preprocessing
    pixels = given_preprocessing(how, None)
    shape = _shape_given(opened, given.input_shape)
    reading = Reading(files=pixels.files)
    if shape is not None and len(shape) == 3:
        reading = replace(reading, channels=shape[0], size=shape[1:])
    dataset = given_data(given.data, reading)
    if shape is None:
        height, width, channels = dataset.images.shape[1:]
        shape = (channels, height, width)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    with hold(folder):
        origin, word = _export(opened, shape, file, dataset, how, given.output)
    return Ready(
        file=file,
        data=dataset,
        preprocessing=how,
        exported=origin,
        words=(*(opened.words if given.preprocessing is None else ()), word),
    )


def check_free(place: Path) -> None:
    """Raise ModelError where something lies that is no export of ours."""
    if not place.exists():
        return
    try:
        proto = onnx.load(str(place), load_external_data=False)
        ours = any(entry.key == MARK for entry in proto.metadata_props)
    except Exception:  # noqa: BLE001 - whatever it is, it is not ours
        ours = False
    if not ours:
        raise ModelError(
            f"expected no file at {place}, where the model's export goes, or an export to replace: "
            "something else is there; give the guard another name"
        )


def _shape_given(opened: "TorchModel", input_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the shape of one image in the input, where it is known before the images are."""
    if input_shape is None:
        return opened.shape
    shape = tuple(input_shape)
    if len(shape) not in {1, 3} or not all(type(side) is int and side > 0 for side in shape):
        raise SettingsError(
            f"expected an input shape of channels, height and width, like 3,224,224, got {shape}"
        )
    if opened.shape is not None and opened.preprocessing is None and opened.shape != shape:
        raise SettingsError(f"{opened.source} takes images of shape {opened.shape}, got {shape}")
    return shape


def _export(
    opened: "TorchModel",
    shape: tuple[int, ...],
    file: Path,
    dataset: Dataset,
    how: HowPixels | None,
    output: str | None,
) -> tuple[ExportedFrom, str]:
    """Make the export where it is not there yet; return what it is of, and words."""
    import torch

    from reluguard.training.models.compared import compared
    from reluguard.training.models.export import exported

    origin = ExportedFrom(
        source=opened.source,
        weights=opened.digest,
        shape=shape,
        torch=str(torch.__version__),
    )
    rows = np.unique(np.linspace(0, len(dataset) - 1, CHECKED).astype(np.int64))
    images = dataset.images[rows]

    def held_against_torch() -> "Compared":
        production = load_production(file, output=output)
        pixels = given_preprocessing(how, production.image_size)
        return compared(opened, production, spec_of(production, images.shape[1:], pixels), images)

    if _mark_of(file) == origin and (found := held_against_torch()).is_same:
        return origin, _agreed(opened, found, len(rows))
    metadata = {MARK: json.dumps(origin.to_json())}
    if opened.names:
        metadata["names"] = json.dumps(list(opened.names))
    write_file(file, exported(opened.program, shape, source=opened.source, metadata=metadata))
    found = held_against_torch()
    if not found.is_same:
        file.unlink()
        raise ModelError(
            f"{opened.source} answers otherwise after its export to ONNX: {found.words}. A module "
            "that draws at random, or whose answers hang on more than its input, can't be guarded; "
            "if it is neither, export it yourself and give the ONNX file"
        )
    return origin, _agreed(opened, found, len(rows))


def _agreed(opened: "TorchModel", found: "Compared", count: int) -> str:
    return (
        f"{opened.source} was exported to ONNX; torch and ONNX Runtime agree on {count} images "
        f"(largest difference {found.largest:.2g} of scores up to {found.scale:.3g})"
    )


def _mark_of(file: Path) -> ExportedFrom | None:
    """Return what a file was exported from, None where it is not there or does not say."""
    try:
        proto = onnx.load(str(file), load_external_data=False)
        (mark,) = (entry.value for entry in proto.metadata_props if entry.key == MARK)
        return ExportedFrom.from_json(json.loads(mark))
    except Exception:  # noqa: BLE001 - then it is made anew
        return None
