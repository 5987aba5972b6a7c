"""The user's case, opened and checked: model, taps, images and how they are split.

N images, H rows, W columns, C channels, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.head import images_needed
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import MAX_LEVEL, Survey, Tap, in_blocks, survey
from reluguard.training.data.dataset import (
    Dataset,
    check_classes,
    check_labels,
    split_sources,
)
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.preprocessing import Preprocessing, spec_of
from reluguard.training.errors import DataError

__all__ = [
    "Case",
    "chunk_of",
    "open_case",
    "predict",
    "read_rates",
    "source_images",
]

CHUNK = 256
LEAST_CHUNK = 4
CHUNK_VALUES = 32 * 3 * 32 * 32  # ResNet-20, one thread: .59 ms an image at 32, .69 at 256
LEVEL_IMAGES = 64
BLOCKS = 8  # rows and columns of them
BLOCK_SIDE = 4
MIRROR_LOSS = 0.01  # a model that loses no more on mirror images was trained on such
GUESSING = 2.0  # a classifier right less often than so many times chance is fed wrong pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What every step of fitting shares.

    Attributes:
        path: the production ONNX file.
        production: what is in it.
        spec: how images go into it.
        gates: which can be read, and why not the others.
        taps: the gates that are read.
        dataset: the images.
        splits: disjoint source images by part: "fit", "calibrate" and "test". Where the model takes
            mirror images as well as the images themselves, "fit" holds those too: row N + i is the
            mirror image of row i.
        accuracy: of the model on the images.
        right: bool, (2 N,). Which images and mirror images the model answers right.
    """

    path: Path
    production: Production
    spec: InputSpec
    gates: Survey
    taps: tuple[Tap, ...]
    dataset: Dataset
    splits: Mapping[str, NDArray[np.int64]]
    accuracy: float
    right: NDArray[np.bool_]


def open_case(
    model: Path,
    data: Data,
    *,
    levels: Sequence[float],
    shares: Mapping[str, float],
    preprocessing: Preprocessing | None,
    output: str | None,
    fpr: float,
    seed: int,
    threads: int | None,
) -> tuple[Case, Reader]:
    """Return the case and a reader of its firing rates.

    Args:
        model: the production ONNX file.
        data: labelled images, as `given_data` takes them.
        levels: each tap is read at these multiples of its mean positive value; at 0 with none.
        shares: of the images, by part: "fit", "calibrate" and "test".
        preprocessing: from pixels to the model's input.
        output: which output holds the class scores.
        fpr: the false-positive rate that calibration must be able to promise.
        seed: of the split.
        threads: of ONNX Runtime.

    Raises:
        ModelError: the model can't be read or run, or images of this size don't fit it.
        NoTapsError: it has no gate to read.
        DataError: labels out of range, one class only, too few images for the false-positive rate,
            or a model that all but guesses on these images.
    """
    production = load_production(model, output=output)
    dataset = given_data(data, size=production.image_size)
    check_classes(dataset)
    spec = spec_of(production, dataset.images.shape[1:], preprocessing)
    gates = survey(production, spec)
    taps = with_blocks(gates.taps)
    if levels:
        sample = dataset.images[:LEVEL_IMAGES]
        taps = with_levels(production, spec, taps, sample, levels)
    reader = Reader(production, spec, taps, threads=threads)
    classes = predict(reader, dataset.images[:1]).shape[1]
    if classes < 2:
        raise DataError(f"expected a model of at least 2 classes, got {classes} output")
    check_labels(dataset, classes)
    splits = split_sources(dataset.labels, shares, seed)
    needed = images_needed(fpr)
    if len(splits["calibrate"]) < needed:
        raise DataError(
            f"a false-positive rate of {fpr} needs {needed} calibration images, which is "
            f"{int(np.ceil(needed / shares['calibrate']))} images in all; {dataset.source} has "
            f"{len(dataset)}"
        )
    right = predict(reader, dataset.images).argmax(axis=1) == dataset.labels
    accuracy = float(right.mean())
    if accuracy < GUESSING / classes and accuracy < 0.5:
        raise DataError(
            f"the model answers {accuracy:.1%} of these images right, of {classes} classes: labels "
            "or pixels are not what it was trained on. See --scale, --mean, --std and --bgr"
        )
    mirrored = predict(reader, dataset.images[:, :, ::-1]).argmax(axis=1) == dataset.labels
    if mirrored.mean() >= accuracy - MIRROR_LOSS:
        splits["fit"] = np.concatenate([splits["fit"], splits["fit"] + len(dataset)])
    case = Case(
        path=model,
        production=production,
        spec=spec,
        gates=gates,
        taps=taps,
        dataset=dataset,
        splits=splits,
        accuracy=accuracy,
        right=np.concatenate([right, mirrored]),
    )
    return case, reader


def with_blocks(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Return the taps, those of large maps read in blocks: which have a gate open anywhere.

    It is far cheaper than counting every place, and tells as much: on ResNet-20 all of the default
    recipe's attacks have a mean AUROC of .957 in blocks and .958 place by place, and harmless
    changes raise fewer alarms. Blocks larger than 4 x 4 were not measured, so there are 8 x 8
    of them, or as many as that takes.

    Args:
        taps: as `find_taps` gives them.
    """
    return tuple(
        in_blocks([tap], *(max(BLOCKS, -(-side // BLOCK_SIDE)) for side in tap.shape[1:]))[0]
        if len(tap.shape) == 3 and tap.channel_axis == 0
        else tap
        for tap in taps
    )


def with_levels(
    production: Production,
    spec: InputSpec,
    taps: tuple[Tap, ...],
    images: Images,
    factors: Sequence[float],
) -> tuple[Tap, ...]:
    """Return the taps read at levels that are multiples of their mean positive value.

    Args:
        production: the model.
        spec: how images go into it.
        taps: to read so.
        images: uint8, (N, H, W, C), a sample of clean images.
        factors: ascending, above 0.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=tap.name) for tap in taps if tap.name not in known
    )
    session = open_session(probe)
    total, count = np.zeros(len(taps)), np.zeros(len(taps))
    step = spec.batch or 4
    rows = np.arange(-(-len(images) // step) * step) % len(images)  # a fixed batch is filled up
    for start in range(0, len(rows), step):
        tensor = spec.to_tensor(images[rows[start : start + step]])
        values = run_session(session, {spec.name: tensor}, [tap.name for tap in taps])
        for i, (tap, value) in enumerate(zip(taps, values, strict=True)):
            real = value.astype(np.float32) + (128 if tap.dtype == "int8" else 0)
            positive = real[real > 0]
            total[i] += positive.sum(dtype=np.float64)
            count[i] += positive.size
    means = np.where(total > 0, total / np.maximum(count, 1), 1.0)  # some gates never open
    means = np.minimum(means, MAX_LEVEL / 2 / max(factors))
    return tuple(
        replace(tap, levels=tuple(float(np.float32(factor * mean)) for factor in factors))
        for tap, mean in zip(taps, means, strict=True)
    )


def source_images(
    dataset: Dataset, sources: NDArray[np.int64]
) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Return images, labels and the row of the image each was made from.

    Args:
        dataset: N images.
        sources: row i, or N + i for the mirror image of row i.
    """
    rows = sources % len(dataset)
    images = dataset.images[rows]
    mirror = sources >= len(dataset)
    images[mirror] = images[mirror][:, :, ::-1]
    return images, dataset.labels[rows], rows


def predict(reader: Reader, images: Images) -> NDArray[np.float32]:
    """Return logits, float32 (N, K), in chunks of bounded memory."""
    logits: NDArray[Any] = np.concatenate([logits for _, logits in _chunks(reader, images)])
    return logits


def read_rates(
    reader: Reader, images: Images, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return firing rates (N, D) and logits (N, K), float32, in chunks of bounded memory.

    Args:
        reader: of the model.
        images: uint8, (M, H, W, C).
        rows: int64, (N,). Which of them; all by default.
    """
    parts = zip(*_chunks(reader, images, rows), strict=True)
    rates, logits = (np.concatenate(arrays) for arrays in parts)
    return rates, logits


def _chunks(
    reader: Reader, images: Images, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    chunk = chunk_of(images)
    for start in range(0, len(images if rows is None else rows), chunk):
        part = slice(start, start + chunk)
        yield reader.read(images[part if rows is None else rows[part]])


def chunk_of(images: Images) -> int:
    """Return how many images to run at a time, so that what they activate stays in the cache."""
    return min(CHUNK, max(LEAST_CHUNK, CHUNK_VALUES // int(images[0].size)))
