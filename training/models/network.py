"""A model beside labelled images, however either is given, with a guard or without one."""

from collections.abc import Sequence
from pathlib import Path

from reluguard.training.data.classes import Classes
from reluguard.training.data.given import Data
from reluguard.training.data.network import Network, open_network
from reluguard.training.data.preprocessing import HowPixels
from reluguard.training.models.given import Ready, ready_model
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone

__all__ = ["network_given"]


def network_given(
    model: ModelOrNone,
    data: Data,
    *,
    folder: Path,
    guard: Path | str | None = None,
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    threads: int | None = None,
) -> tuple[Ready, Network]:
    """Return the model that can be worked on, and it opened beside its images.

    With a guard, `guard_model` says which file that is, and the guard how pixels go in; without
    one `ready_model` does. For arguments and errors see these and `open_network`.

    Args:
        model: however it is given; None for the export beside the guard.
        data: labelled images.
        folder: for an export, without a guard.
        guard: a guard of the model.
        output: which output holds the class scores, without a guard.
        preprocessing: from files to pixels to the model's input, without a guard.
        classes: which class each folder of images is.
        weights: of a network by name.
        input_shape: of one image in a torch model's input, without a guard.
        threads: of ONNX Runtime, for the guard.
    """
    if guard is None:
        ready = ready_model(
            model,
            data,
            folder=folder,
            output=output,
            preprocessing=preprocessing,
            weights=weights,
            input_shape=input_shape,
        )
        preprocessing = ready.preprocessing
    else:
        file = guard_model(model, guard, weights=weights)
        ready = Ready(file=file, data=data, preprocessing=preprocessing)
    network = open_network(
        ready.file,
        ready.data,
        guard=None if guard is None else Path(guard),
        output=output,
        preprocessing=preprocessing,
        classes=classes,
        threads=threads,
    )
    return ready, network
