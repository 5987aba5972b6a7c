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
    Classes,
    Known,
    guard_data,
    known_classes,
    names_kept,
    with_classes,
)
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import HowPixels, given_preprocessing, spec_of
from reluguard.training.data.reading import Reading

__all__ = ["Network", "class_count", "open_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is looked into.

    Attributes:
        production: the network.
        spec: how images go into it.
        dataset: the images.
        guard: the network's guard, where one was given.
        names: of its classes, where they are known.
    """

    production: Production
    spec: InputSpec
    dataset: Dataset
    guard: Guard | None
    names: tuple[str, ...] = ()

    def more(self, data: Data) -> Dataset:
        """Return other images, read as these and labelled as these.

        Args:
            data: labelled images, as `given_data` takes them.

        Raises:
            DataError: they can't be read, or there is no telling which class a folder is.
        """
        dataset = given_data(data, Reading.of(self.spec))
        known = Known(folders=self.dataset.folders, names=self.names)
        count = class_count(self.production, self.spec) if dataset.folders else None
        return with_classes(dataset, self.production, count, None, known)


def class_count(production: Production, spec: InputSpec) -> int:
    """Return K, how many classes a network has.

    Raises:
        ModelError: it doesn't run.
    """
    session = open_session(production.proto, optimise=False)
    blank = np.zeros((spec.batch or 1, *spec.tensor_shape), spec.dtype)
    (answer,) = run_session(session, {spec.name: blank}, [production.answer])
    return int(production.class_scores(answer).shape[1])


def open_network(
    model: Path,
    data: Data,
    *,
    guard: Path | None = None,
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    classes: Classes | None = None,
    threads: int | None = None,
) -> Network:
    """Return a network with its images.

    Args:
        model: the production ONNX file.
        data: labelled images, as `given_data` takes them.
        guard: the folder of a guard of this model: output and preprocessing are then its own.
        output: which output holds the class scores, without a guard.
        preprocessing: from pixels to the model's input, without a guard.
        classes: which class each folder of images is, as `with_classes` takes it; by default what
            the guard knows.
        threads: of ONNX Runtime, for the guard.

    Raises:
        SettingsError: a guard was given, and beside it what it says itself.
        DataError: the images can't be read, or there is no telling which class a folder is.
        ModelError: the model can't be read or run, or images of this size don't fit it.
        GuardError: the guard can't be read or is not the model's.
    """
    if guard is None:
        production = load_production(model, output=output)
        how = given_preprocessing(preprocessing, production.image_size)
        dataset = given_data(data, Reading.for_model(production, how))
        spec = spec_of(production, dataset.images.shape[1:], how)
        count = class_count(production, spec)
        dataset = with_classes(dataset, production, count, classes)
        names = names_kept(dataset, production, count, classes)
        return Network(production=production, spec=spec, dataset=dataset, guard=None, names=names)
    if output is not None or preprocessing is not None:
        raise SettingsError(
            f"expected neither preprocessing nor an output beside the guard {guard}: it says both"
        )
    opened = Guard.open(model, guard, threads=threads, looks="first")
    manifest = opened.artifact.manifest
    return Network(
        production=load_production(model, output=manifest.answer),
        spec=opened.spec,
        dataset=guard_data(data, opened, classes),
        guard=opened,
        names=known_classes(manifest).names if classes is None else (),
    )
