"""A network beside labelled images, with a guard that says how they go together or without one."""

from dataclasses import dataclass
from pathlib import Path

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import HowPixels, given_preprocessing, spec_of
from reluguard.training.data.reading import Reading

__all__ = ["Network", "open_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is looked into.

    Attributes:
        production: the network.
        spec: how images go into it.
        dataset: the images.
        guard: the network's guard, where one was given.
    """

    production: Production
    spec: InputSpec
    dataset: Dataset
    guard: Guard | None


def open_network(
    model: Path,
    data: Data,
    *,
    guard: Path | None = None,
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    threads: int | None = None,
) -> Network:
    """Return a network with its images.

    Args:
        model: the production ONNX file.
        data: labelled images, as `given_data` takes them.
        guard: the folder of a guard of this model: output and preprocessing are then its own.
        output: which output holds the class scores, without a guard.
        preprocessing: from pixels to the model's input, without a guard.
        threads: of ONNX Runtime, for the guard.

    Raises:
        SettingsError: a guard was given, and beside it what it says itself.
        DataError: the images can't be read.
        ModelError: the model can't be read or run, or images of this size don't fit it.
        GuardError: the guard can't be read or is not the model's.
    """
    if guard is None:
        production = load_production(model, output=output)
        how = given_preprocessing(preprocessing, production.image_size)
        dataset = given_data(data, Reading.for_model(production, how))
        spec = spec_of(production, dataset.images.shape[1:], how)
        return Network(production=production, spec=spec, dataset=dataset, guard=None)
    if output is not None or preprocessing is not None:
        raise SettingsError(
            f"expected neither preprocessing nor an output beside the guard {guard}: it says both"
        )
    opened = Guard.open(model, guard, threads=threads)
    return Network(
        production=load_production(model, output=opened.artifact.manifest.answer),
        spec=opened.spec,
        dataset=given_data(data, Reading.of_guard(opened.artifact.manifest)),
        guard=opened,
    )
