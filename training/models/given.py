"""Production models however they are given: what works on them gets an ONNX file. N images.

An ONNX file is taken as it is. Of a torch module, a file that torch wrote or a name in a library
one is exported, and what ONNX Runtime answers is held against what torch answers. The export of a
fit lies in its work folder, so that a fit that was killed goes on with the same bytes, and in the
end beside the guard, under the guard's name and `.onnx`: from then on that file is the production
model, and what is given together with a guard is only checked against it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.artifact import check_model, read_guard, write_file
from reluguard.detector.errors import GuardError, ModelError, SettingsError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.lock import hold
from reluguard.detector.model import Production, load_production
from reluguard.detector.session import in_batches, open_session
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import HowPixels, given_preprocessing, spec_of
from reluguard.training.data.reading import Reading
from reluguard.training.models.kinds import is_named, is_onnx, kind_of
from reluguard.training.provenance import ExportedFrom

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from reluguard.training.models.torch_model import TorchModel

__all__ = ["Model", "Ready", "beside", "guard_model", "kept_beside", "ready_model"]

Model: TypeAlias = "Path | str | nn.Module | ExportedProgram"
"""An ONNX file; a torch module in evaluation mode, or what `torch.export.export` made of one; a
`.pt2` or TorchScript file; or the name of a network, "torchvision:NAME" or "timm:NAME"."""

NAME = "model.onnx"  # in a work folder
MARK = "reluguard_export"  # in the file's metadata
CHECKED = 64  # images on which torch and ONNX Runtime must agree
TOLERANCE = 1e-3  # of the largest score
HALF_TOLERANCE = 2e-2  # where the network computes in 16 bits


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


def beside(guard: Path) -> Path:
    """Return where the export of a guard's model lies."""
    return guard.with_name(f"{guard.name}.onnx")


def ready_model(
    model: Model,
    data: Data,
    *,
    folder: Path,
    out: Path | None = None,
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
) -> Ready:
    """Return a model to work on; one that is no ONNX file is exported into a folder.

    Args:
        model: however it is given.
        data: labelled images, as `given_data` takes them.
        folder: for the export, which is made once while model and weights stay the same.
        out: the guard's folder, beside which the export is to lie in the end.
        output: which output holds the class scores.
        preprocessing: from files to pixels to the model's input; by default what a model's library
            says of it.
        weights: of a network by name.
        input_shape: of one image in the model's input, (C, H, W); by default what the model or its
            library says, or what the images have.

    Raises:
        ModelError: it can't be opened or exported, answers otherwise after export, or something
            else lies where its export is to go.
        DataError: the images can't be read.
        SettingsError: a value has no meaning, or weights or shape are said of an ONNX file.
        HeldError: another process works in the folder.
    """
    if is_onnx(model):
        _check_alone(model, weights, input_shape)
        return Ready(file=Path(str(model)), data=data, preprocessing=preprocessing)
    if out is not None:
        _check_free(beside(out))
    opened = _opened(model, weights)
    how = opened.preprocessing if preprocessing is None else preprocessing
    pixels = given_preprocessing(how, None)
    shape = _shape_given(opened, input_shape)
    reading = Reading(files=pixels.files)
    if shape is not None and len(shape) == 3:
        reading = replace(reading, channels=shape[0], size=shape[1:])
    dataset = given_data(data, reading)
    if shape is None:
        height, width, channels = dataset.images.shape[1:]
        shape = (channels, height, width)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    with hold(folder):
        origin, word = _export(opened, shape, file, dataset, how, output)
    return Ready(
        file=file,
        data=dataset,
        preprocessing=how,
        exported=origin,
        words=(*(opened.words if preprocessing is None else ()), word),
    )


def guard_model(model: Model, guard: Path | str, *, weights: Path | str | None = None) -> Path:
    """Return the ONNX file of a guard's model: itself, or the export that lies beside the guard.

    Args:
        model: however it is given; what is no ONNX file must answer the guard's golden images as
            the export does.
        guard: the guard's folder.
        weights: of a network by name.

    Raises:
        ModelError: it can't be opened, or there is no such export.
        ModelMismatchError: the file beside the guard is another model's.
        GuardError: the guard can't be read, or the model is not the one it was fitted to.
    """
    guard = Path(guard)
    if is_onnx(model):
        _check_alone(model, weights, None)
        return Path(str(model))
    file = beside(guard)
    if not file.is_file():
        raise ModelError(
            f"expected the ONNX file that the guard {guard} was fitted to beside it, {file} is not "
            "there: put it there, or give it as the model"
        )
    opened = _opened(model, weights)
    artifact = read_guard(guard)
    production = load_production(file, output=artifact.manifest.answer)
    check_model(artifact, production.sha256)
    spec = artifact.manifest.input
    compared = _compared(opened, production, spec, artifact.golden.images)
    if not compared.is_same:
        raise GuardError(
            f"expected the model that the guard {guard} was fitted to, {opened.source} answers its "
            f"golden images otherwise: {compared.words}"
        )
    return file


@contextmanager
def kept_beside(ready: Ready, guard: Path) -> Iterator[None]:
    """Put a model's export beside its guard when the block, which writes the guard, ends well."""
    if ready.exported is None:
        yield
        return
    place = beside(guard)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.aside")
    try:
        shutil.copyfile(ready.file, aside)  # before the guard is: a full disk leaves both as before
        yield
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)


def _opened(model: Model, weights: Path | str | None) -> "TorchModel":
    """Return a model of torch's, opened."""
    from torch import nn
    from torch.export import ExportedProgram

    from reluguard.training.models.files import open_file, opened_program
    from reluguard.training.models.libraries import open_named
    from reluguard.training.models.torch_model import model_of

    named = isinstance(model, (str, Path)) and is_named(str(model))
    if weights is not None and not named:
        raise SettingsError(
            "expected weights beside a network's name alone, like torchvision:resnet18, got the "
            f"weights {weights} and {_called(model)}"
        )
    if isinstance(model, (str, Path)):
        if named:
            return open_named(str(model), None if weights is None else Path(weights))
        kind = kind_of(Path(model))
        assert kind is not None
        return open_file(Path(model), kind)
    if isinstance(model, ExportedProgram):
        return opened_program(model, "exported program")
    if isinstance(model, nn.Module):
        return model_of(model)
    raise ModelError(
        "expected an ONNX file, a torch module, a .pt2 or TorchScript file, or a name like "
        f"torchvision:resnet18, got {type(model).__name__}"
    )


def _called(model: Model) -> str:
    return str(model) if isinstance(model, (str, Path)) else f"a {type(model).__name__}"


def _check_alone(
    model: Model, weights: Path | str | None, input_shape: Sequence[int] | None
) -> None:
    """Raise SettingsError where something is said of an ONNX file that it says itself."""
    for what, given in (("weights", weights), ("input shape", input_shape)):
        if given is not None:
            raise SettingsError(
                f"expected no {what} beside an ONNX file, which holds its own, got {given} beside "
                f"{model}"
            )


def _check_free(place: Path) -> None:
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

    from reluguard.training.models.export import exported

    origin = ExportedFrom(
        source=opened.source,
        weights=opened.digest,
        shape=shape,
        torch=str(torch.__version__),
    )
    rows = np.unique(np.linspace(0, len(dataset) - 1, CHECKED).astype(np.int64))
    images = dataset.images[rows]

    def compared() -> "_Compared":
        production = load_production(file, output=output)
        pixels = given_preprocessing(how, production.image_size)
        return _compared(opened, production, spec_of(production, images.shape[1:], pixels), images)

    if _mark_of(file) == origin and (found := compared()).is_same:
        return origin, _agreed(opened, found, len(rows))
    metadata = {MARK: json.dumps(origin.to_json())}
    if opened.names:
        metadata["names"] = json.dumps(list(opened.names))
    write_file(file, exported(opened.program, shape, source=opened.source, metadata=metadata))
    found = compared()
    if not found.is_same:
        file.unlink()
        raise ModelError(
            f"{opened.source} answers otherwise after its export to ONNX: {found.words}. A module "
            "that draws at random, or whose answers hang on more than its input, can't be guarded; "
            "if it is neither, export it yourself and give the ONNX file"
        )
    return origin, _agreed(opened, found, len(rows))


def _agreed(opened: "TorchModel", found: "_Compared", count: int) -> str:
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


@dataclass(frozen=True, slots=True)
class _Compared:
    """How far torch's class scores and ONNX Runtime's are apart, on N images."""

    largest: float
    scale: float
    others: int
    count: int
    is_same: bool

    @property
    def words(self) -> str:
        """Say it."""
        return (
            f"scores differ by up to {self.largest:.3g}, where the largest is {self.scale:.3g}, "
            f"and {self.others} of {self.count} answers are others"
        )


def _compared(
    opened: "TorchModel", production: Production, spec: InputSpec, images: Images
) -> _Compared:
    """Return how a model's scores in torch and in ONNX Runtime compare on these images."""
    from reluguard.training.models.export import run_program

    tensor = spec.to_tensor(images)
    (wanted,) = in_batches(open_session(production.proto), spec, tensor, [production.answer])
    wanted = np.asarray(wanted, np.float32)
    step = spec.batch or len(tensor)
    rows = np.arange(-(-len(tensor) // step) * step) % len(tensor)  # a fixed batch is filled up
    found = np.concatenate(
        [run_program(opened.program, tensor[rows[i : i + step]]) for i in range(0, len(rows), step)]
    )[: len(tensor)]
    if found.shape != wanted.shape:
        raise ModelError(
            f"{opened.source} gives scores of shape {found.shape} in torch and {wanted.shape} in "
            "ONNX Runtime"
        )
    return _judged(found, wanted, HALF_TOLERANCE if spec.dtype == "float16" else TOLERANCE)


def _judged(found: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float) -> _Compared:
    scale = float(np.abs(wanted).max(initial=0.0))
    differences = np.abs(found.astype(np.float64) - wanted)
    largest = float(differences.max(initial=0.0))
    flat = [values.reshape(len(values), -1) for values in (found, wanted)]
    others = int((flat[0].argmax(axis=1) != flat[1].argmax(axis=1)).sum())
    same = bool(np.isfinite(differences).all()) and largest <= tolerance * max(scale, 1e-6)
    return _Compared(largest, scale, others, len(found), same)
