"""Adversarial fine-tuning: a model in, ONNX out. N images, K classes.

Every step attacks the batch with one step of FGSM from a random start, and the network learns to
say of the attacked image what the production model says of the clean one; see `HardenSettings`.
Of an ONNX file weights go back into the same graph under the same names, so the hardened file
differs from the production file in numbers only. A network of torch's is trained itself, in a copy,
and exported as `fit` does it. Either can be the production model's second look.
"""

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from reluguard.detector.artifact import write_file
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.onnx_file.kinds import is_onnx
from reluguard.training.analysis.hardening import HardenReport
from reluguard.training.data.classes import Classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data
from reluguard.training.data.preprocessing import HowPixels
from reluguard.training.data.splits import split_sources
from reluguard.training.hardening.forecast import expected_steps
from reluguard.training.hardening.halves import Joined
from reluguard.training.hardening.judging import judged
from reluguard.training.hardening.own import Own
from reluguard.training.hardening.settings import HardenSettings
from reluguard.training.hardening.student import Student
from reluguard.training.hardening.tuning import SAMPLE, Networks, fine_tune
from reluguard.training.models.given import CHECKED, Given
from reluguard.training.models.network import open_network
from reluguard.training.models.opened import ModelOrNone, opened_model
from reluguard.training.models.torch_model import TorchModel
from reluguard.training.progress import Progress
from reluguard.training.statistics.intervals import bootstrap, mean_of
from reluguard.training.statistics.metrics import Interval, rate_interval
from reluguard.training.twin.onnx_torch import OnnxModule

__all__ = ["HardenReport", "HardenSettings", "Hardened", "harden", "harden_images"]

MUCH = 0.1  # of clean images, that a copy is wrong on and the model is not


def harden(
    model: ModelOrNone,
    data: Data,
    *,
    out: Path | str,
    held_out: Data | None = None,
    guard: Path | str | None = None,
    limit: int | None = 10_000,
    settings: HardenSettings | None = None,
    preprocessing: HowPixels | None = None,
    output: str | None = None,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> HardenReport:
    """Write `out/model.onnx` and `out/report.json`, and return the report.

    Of a network of torch's also `out/weights.pt`, its `state_dict` after training.

    Args:
        model: the production model, as `fit` takes it; it stays as it is. An ONNX file is trained
            as converted to torch; a network of torch's is trained itself, in evaluation mode:
            Dropout rests and BatchNorm keeps its averages. None for the export beside the guard.
        data: labelled images to train on, as `fit` takes them. Those the model was trained on
            are right here.
        out: a folder.
        held_out: labelled images to measure on; by default a fifth of `data`.
        guard: a guard of the model as it is, which says how pixels become its input and which
            output holds the class scores.
        limit: images to train on, at most.
        settings: of the training.
        preprocessing: from pixels to the model's input, without a guard.
        output: which output holds the class scores, without a guard.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        weights: of a network by name, as `fit` takes them.
        input_shape: of one image in a torch model's input, without a guard.
        progress: told of stages and steps.

    Raises:
        SettingsError: a value has no meaning, or a guard says already what is said here.
        DataError: the images can't be read.
        ModelError: the model can't be read or run, or images of this size don't fit it.
        GuardError: the guard can't be read or is not the model's.
        TwinError: the model can't be run in torch, or has no weight that can be trained.
    """
    settings, progress = settings or HardenSettings(), progress or Progress()
    out = Path(out)
    with tempfile.TemporaryDirectory() as folder:
        given = Given(
            model=model,
            data=data,
            guard=guard,
            output=output,
            preprocessing=preprocessing,
            classes=classes,
            weights=weights,
            input_shape=input_shape,
        )
        network = open_network(given, folder=Path(folder))
    for word in network.words:
        progress.say(word)
    production, spec, dataset = network.production, network.spec, network.dataset
    own = None if model is None or is_onnx(model) else opened_model(model, weights)
    if held_out is None:
        parts = split_sources(dataset.labels, {"train": 0.8, "test": 0.2}, settings.seed)
        train, test = dataset.take(parts["train"]), dataset.take(parts["test"])
    else:
        train, test = dataset, network.more(held_out)
    train = _some(train, limit or len(train), settings.seed)
    test = _some(test, settings.evaluate, settings.seed)
    hardened, report = harden_images(
        production, spec, train, test, own=own, settings=settings, progress=progress
    )
    lost = report.clean_before.value - report.clean_after.value
    if lost > MUCH:
        progress.say(
            f"the copy is right on {lost:.0%} fewer clean images than the model: give more images "
            "or epochs, or a smaller budget"
        )
    write_file(out / "model.onnx", hardened.proto.SerializeToString())
    if hardened.state is None:
        (out / "weights.pt").unlink(missing_ok=True)  # those of a run before
    else:
        stream = io.BytesIO()
        torch.save(hardened.state, stream)
        write_file(out / "weights.pt", stream.getvalue())
    text = json.dumps({"settings": asdict(settings), "report": report.to_json()}, indent=2)
    write_file(out / "report.json", text.encode())
    return report


@dataclass(frozen=True, slots=True)
class Hardened:
    """The fine-tuned model, and what torch keeps of it where torch's own network was trained."""

    proto: onnx.ModelProto
    state: Mapping[str, torch.Tensor] | None = None


def harden_images(
    production: Production,
    spec: InputSpec,
    train: Dataset,
    test: Dataset,
    *,
    settings: HardenSettings,
    own: TorchModel | None = None,
    progress: Progress | None = None,
) -> tuple[Hardened, HardenReport]:
    """Return the fine-tuned model and the report; see `harden`."""
    progress = progress or Progress()
    start = time.perf_counter()
    student: Student
    teacher: nn.Module
    if own is None:
        student = Joined(production, spec)
        teacher = OnnxModule(production.proto, production.logits)
    else:
        student, teacher = Own(own, production, spec), Own(own, production, spec)
    progress.plan("harden", expected_steps(teacher, spec, train, test, settings))
    progress.stage("harden", settings.epochs * -(-len(train) // settings.batch))
    networks = Networks.of(student, teacher, spec, train.images[:SAMPLE])
    weights = fine_tune(networks, train, settings, lambda: progress.advance(1))
    proto, made = student.finished(weights, train.images[:CHECKED])
    seconds = time.perf_counter() - start
    progress.stage("robust accuracy", 2)
    before = judged(production, teacher, spec, test, settings)
    progress.advance(1)
    learned = student if isinstance(student, Own) else OnnxModule(proto, made.logits)
    after = judged(made, learned, spec, test, settings)
    progress.advance(1)
    n = len(test)
    report = HardenReport(
        clean_before=rate_interval(int(before.right.sum()), n),
        clean_after=rate_interval(int(after.right.sum()), n),
        clean_gain=_gain(before.right, after.right, settings.seed),
        robust_before=rate_interval(int(before.robust.sum()), n),
        robust_after=rate_interval(int(after.robust.sum()), n),
        robust_gain=_gain(before.robust, after.robust, settings.seed),
        consistency_before=mean_of(before.cosine, seed=settings.seed),
        consistency_after=mean_of(after.cosine, seed=settings.seed),
        consistency_gain=_gain(before.cosine, after.cosine, settings.seed),
        detection_before=before.detection,
        detection_after=after.detection,
        images=len(train),
        evaluated=n,
        attack=before.attack,
        seconds=seconds,
    )
    return Hardened(proto, student.state() if isinstance(student, Own) else None), report


def _some(data: Dataset, most: int, seed: int) -> Dataset:
    if len(data) <= most:
        return data
    return data.take(np.sort(np.random.default_rng(seed).permutation(len(data))[:most]))


def _gain(before: NDArray[Any], after: NDArray[Any], seed: int) -> Interval:
    change = after.astype(np.float64) - before.astype(np.float64)
    return bootstrap(lambda rows: float(change[rows].mean()), len(change), seed=seed)
