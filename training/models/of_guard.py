"""The ONNX file of a guard's model, whatever the model is given as."""

from pathlib import Path

from reluguard.detector.artifact import GuardArtifact, check_model, read_guard
from reluguard.detector.errors import GuardError, ModelError
from reluguard.detector.model import load_production
from reluguard.detector.onnx_file.beside import beside, model_file
from reluguard.detector.onnx_file.kinds import is_onnx
from reluguard.detector.shelf.versions import current
from reluguard.training.models.given import check_free
from reluguard.training.models.opened import ModelOrNone, check_alone, opened_model
from reluguard.training.provenance import provenance_of

__all__ = ["export_of", "guard_model"]


def guard_model(
    model: ModelOrNone, guard: Path | str, *, weights: Path | str | None = None
) -> Path:
    """Return the ONNX file of a guard's model: itself, or the export that lies beside the guard.

    Args:
        model: however it is given; what is no ONNX file must answer the guard's golden images as
            the export does. None for the export.
        guard: the guard's folder, or a shelf.
        weights: of a network by name.

    Raises:
        ModelError: it can't be opened, or there is no such export.
        ModelMismatchError: the file beside the guard is another model's.
        GuardError: the guard can't be read, or the model is not the one it was fitted to.
        SettingsError: weights are said of an ONNX file.
    """
    guard = Path(guard)
    if model is None or is_onnx(model):
        check_alone(model, weights)
    if model is not None and is_onnx(model):
        return Path(str(model))
    artifact = current(guard) or read_guard(guard)
    if model is None:
        return model_file(None, guard)
    file = beside(guard)
    if not file.is_file():
        raise ModelError(
            f"expected the ONNX file that the guard {guard} was fitted to beside it, {file} is not "
            "there: put it there, or give it as the model"
        )
    opened = opened_model(model, weights)
    manifest = artifact.manifest
    production = load_production(file, output=manifest.answer)
    check_model(artifact, production.sha256)

    from reluguard.training.models.compared import compared

    found = compared(opened, production, manifest.input, artifact.golden.images)
    if not found.is_same:
        raise GuardError(
            f"expected the model that the guard {guard} was fitted to, {opened.source} answers its "
            f"golden images otherwise: {found.words}"
        )
    return file


def export_of(artifact: GuardArtifact, file: Path, out: Path) -> Path | None:
    """Return the export that a guard was fitted to, to be put beside a new one; None of an owner's.

    Args:
        artifact: the guard.
        file: of its model.
        out: the new guard's folder.

    Raises:
        ModelError: something else lies beside that folder.
    """
    if provenance_of(artifact.manifest).exported is None:
        return None
    check_free(beside(out))
    return file
