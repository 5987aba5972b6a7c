"""A network beside labelled images, with a guard that says how they go together or without one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session, run_session
from reluguard.training.data.classes import (
    Known,
    guard_data,
    known_classes,
    names_kept,
    with_classes,
)
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import given_preprocessing, spec_of
from reluguard.training.data.reading import Reading
from reluguard.training.models.given import Given, ready_model
from reluguard.training.models.of_guard import guard_model

__all__ = ["Network", "open_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is looked into.

    Attributes:
        file: its ONNX file.
        production: what is in it.
        spec: how images go into it.
        dataset: the images.
        guard: the network's guard, where one was given.
        names: of its classes, where they are known.
        words: what people should know of its export.
    """

    file: Path
    production: Production
    spec: InputSpec
    dataset: Dataset
    guard: Guard | None
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def more(self, data: Data) -> Dataset:
        """Return other images, read as these and labelled as these.

        Args:
            data: labelled images, as `given_data` takes them.

        Raises:
            DataError: they can't be read, or there is no telling which class a folder is.
        """
        dataset = given_data(data, Reading.of(self.spec))
        known = Known(folders=self.dataset.folders, names=self.names)
        count = _class_count(self.production, self.spec) if dataset.folders else None
        return with_classes(dataset, self.production, count, None, known)


def open_network(given: Given, *, folder: Path, threads: int | None = None) -> Network:
    """Return a network with its images.

    Args:
        given: model and images; with a guard, `guard_model` says which file the model is, and the
            guard how pixels go in.
        folder: for the export of what is no ONNX file, without a guard.
        threads: of ONNX Runtime, for the guard.

    Raises:
        SettingsError: a guard was given, and beside it what it says itself.
        DataError: the images can't be read, or there is no telling which class a folder is.
        ModelError: the model can't be read or run, or images of this size don't fit it.
        GuardError: the guard can't be read or is not the model's.
    """
    return _alone(given, folder) if given.guard is None else _guarded(given, given.guard, threads)


def _alone(given: Given, folder: Path) -> Network:
    ready = ready_model(given, folder=folder)
    production = load_production(ready.file, output=given.output)
    how = given_preprocessing(ready.preprocessing, production.image_size)
    dataset = given_data(ready.data, Reading.for_model(production, how))
    spec = spec_of(production, dataset.images.shape[1:], how)
    count = _class_count(production, spec)
    dataset = with_classes(dataset, production, count, given.classes)
    return Network(
        file=ready.file,
        production=production,
        spec=spec,
        dataset=dataset,
        guard=None,
        names=names_kept(dataset, production, count, given.classes),
        words=ready.words,
    )


def _guarded(given: Given, guard: Path | str, threads: int | None) -> Network:
    told = {
        "preprocessing": given.preprocessing,
        "output": given.output,
        "input shape": given.input_shape,
    }
    for what, value in told.items():
        if value is not None:
            raise SettingsError(
                f"expected no {what} beside the guard {guard}, which tells it, got {value}"
            )
    file = guard_model(given.model, guard, weights=given.weights)
    opened = Guard.open(file, guard, threads=threads, looks="first")
    manifest = opened.artifact.manifest
    return Network(
        file=file,
        production=load_production(file, output=manifest.answer),
        spec=opened.spec,
        dataset=guard_data(given.data, opened, given.classes),
        guard=opened,
        names=known_classes(manifest).names if given.classes is None else (),
    )


def _class_count(production: Production, spec: InputSpec) -> int:
    """Return K, how many classes a network has.

    Raises:
        ModelError: it doesn't run.
    """
    session = open_session(production.proto, optimise=False)
    blank = np.zeros((spec.batch or 1, *spec.tensor_shape), spec.dtype)
    (answer,) = run_session(session, {spec.name: blank}, [production.answer])
    return int(production.class_scores(answer).shape[1])
