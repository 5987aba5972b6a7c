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
from reluguard.training.data.classes import Classes, names_kept, with_classes
from reluguard.training.data.copies import find_copies
from reluguard.training.data.dataset import (
    Dataset,
    check_classes,
    check_labels,
)
from reluguard.training.data.doubts import (
    Reordered,
    is_guessing,
    least_share,
    perfect_words,
    reordered,
)
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.guesses import better_guess, odd_scale
from reluguard.training.data.mapped import empty_array, give_back, release
from reluguard.training.data.preprocessing import HowPixels, given_preprocessing, spec_of
from reluguard.training.data.reading import Reading
from reluguard.training.data.splits import Copies, split_sources
from reluguard.training.errors import DataError

__all__ = [
    "Case",
    "chunk_of",
    "chunk_of_values",
    "open_case",
    "predict",
    "read_rates",
    "source_images",
]

CHUNK = 256
LEAST_CHUNK = 2
CHUNK_VALUES = 32 * 3 * 32 * 32  # ResNet-20, one thread: .59 ms an image at 32, .69 at 256
LEVEL_IMAGES = 64
BLOCKS = 8  # rows and columns of them
BLOCK_SIDE = 4
MIRROR_LOSS = 0.01  # a model that loses no more on mirror images was trained on such
FEW = 5  # calibration images of a class, below which people are told
NAMED = 12  # classes in one warning


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
        copies: rows that hold the same picture.
        names: of all classes, where they are known.
        words: what people should know of the images.
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
    copies: Copies
    names: tuple[str, ...] = ()
    words: tuple[str, ...]
    accuracy: float
    right: NDArray[np.bool_]


def open_case(
    model: Path,
    data: Data,
    *,
    levels: Sequence[float],
    shares: Mapping[str, float],
    preprocessing: HowPixels | None,
    classes: Classes | None = None,
    as_given: bool = False,
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
        preprocessing: from files to pixels to the model's input, as `given_preprocessing` takes it.
        classes: which of the model's classes each folder is, as `with_classes` takes it.
        as_given: whether to go on with a preprocessing that looks wrong.
        output: which output holds the class scores.
        fpr: the false-positive rate that calibration must be able to promise.
        seed: of the split.
        threads: of ONNX Runtime.

    Raises:
        ModelError: the model can't be read or run, or images of this size don't fit it.
        NoTapsError: it has no gate to read.
        SettingsError: the preprocessing has no meaning.
        DataError: labels out of range, one class only, too few images for the false-positive rate,
            a model that all but guesses on these images, or answers clearly more of them right
            with another preprocessing.
    """
    production = load_production(model, output=output)
    how = given_preprocessing(preprocessing, production.image_size)
    dataset = given_data(data, Reading.for_model(production, how))
    check_classes(dataset)
    spec = spec_of(production, dataset.images.shape[1:], how)
    gates = survey(production, spec)
    taps = with_blocks(gates.taps)
    if levels:
        sample = dataset.images[:LEVEL_IMAGES]
        taps = with_levels(production, spec, taps, sample, levels)
    reader = Reader(production, spec, taps, threads=threads)
    count = predict(reader, dataset.images[:1]).shape[1]
    if count < 2:
        raise DataError(f"expected a model of at least 2 classes, got {count} output")
    dataset = with_classes(dataset, production, count, classes)
    check_labels(dataset, count)
    copies = find_copies(dataset.images, dataset.labels)
    splits = split_sources(dataset.labels, shares, seed, copies=copies)
    words = [*dataset.words, *_copy_words(copies, len(dataset))]
    _check_calibration(splits, copies, dataset, fpr, shares)
    words += _class_words(dataset, splits["calibrate"], count)
    plain = Reader(production, spec, (), threads=threads)  # whose answers alone are asked for
    logits = predict(plain, dataset.images)
    right = logits.argmax(axis=1) == dataset.labels
    assumed = bool(dataset.folders) and classes is None
    other = reordered(logits.argmax(axis=1), dataset.labels, count)
    likely = other.share if other else least_share(count)  # what other pixels must do better than
    words += _check_pixels(plain, dataset, right, likely=likely, as_given=as_given, seed=seed)
    words += _check_answers(plain.spec, dataset, logits, other, assumed=assumed)
    perfect = perfect_words(logits, dataset.labels, right)
    words += [perfect] if perfect else []
    accuracy = float(right.mean())
    mirrored = predict(plain, dataset.images[:, :, ::-1]).argmax(axis=1) == dataset.labels
    del plain
    give_back()
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
        copies=copies,
        names=names_kept(dataset, production, count, classes),
        words=tuple(words),
        accuracy=accuracy,
        right=np.concatenate([right, mirrored]),
    )
    return case, reader


def _check_calibration(
    splits: Mapping[str, NDArray[np.int64]],
    copies: Copies,
    dataset: Dataset,
    fpr: float,
    shares: Mapping[str, float],
) -> None:
    """Raise DataError where there are too few images to promise the false-positive rate."""
    needed = images_needed(fpr)
    if len(splits["calibrate"]) >= needed:
        return
    different = len(dataset) - sum(len(group) - 1 for group in copies)
    apart = f", {different} of them no copies of others" if copies else ""
    raise DataError(
        f"a false-positive rate of {fpr} needs {needed} calibration images, which is "
        f"{int(np.ceil(needed / shares['calibrate']))} images in all; {dataset.source} has "
        f"{len(dataset)}{apart}"
    )


def _copy_words(copies: Copies, count: int) -> list[str]:
    more = sum(len(group) - 1 for group in copies)
    if not more:
        return []
    word = (
        f"{more} of {count} images are copies of others, equal or nearly so: only {count - more} "
        "distinct ones count, and no two copies stand in different parts"
    )
    return [word]


def _class_words(dataset: Dataset, calibrate: NDArray[np.int64], count: int) -> list[str]:
    """Return a warning that names classes with few or no calibration images."""
    there = np.bincount(dataset.labels[calibrate], minlength=count)
    names = {label: name for name, label in dataset.folders.items()}
    words = []
    for few, what in (
        (np.flatnonzero(there == 0), "no calibration images of"),
        (np.flatnonzero((there > 0) & (there < FEW)), f"fewer than {FEW} calibration images of"),
    ):
        if len(few):
            some = [_named(int(label), names) for label in few]
            text = ", ".join(some[:NAMED]) + (
                f" and {len(some) - NAMED} more" if len(some) > NAMED else ""
            )
            noun = "class" if len(few) == 1 else f"{len(few)} of {count} classes:"
            words.append(
                f"{what} {noun} {text}. Clean images of what a guard has hardly seen are flagged "
                "far more often than it promises: give some of each class"
            )
    return words


def _named(label: int, names: Mapping[int, str]) -> str:
    name = names.get(label, str(label))
    return name if name == str(label) else f"{label} ({name})"


def _check_answers(
    spec: InputSpec,
    dataset: Dataset,
    logits: NDArray[np.float32],
    other: Reordered | None,
    *,
    assumed: bool,
) -> list[str]:
    """Return a word where the model's answers speak of other labels.

    Args:
        spec: how the images went into the model.
        dataset: the images.
        logits: of the model on them.
        other: an order of the classes that suits them better.
        assumed: whether which class a folder is was not said but found out.

    Raises:
        DataError: nobody said which class a folder is, or the model as good as guesses.
    """
    answers, classes = logits.argmax(axis=1), logits.shape[1]
    guesses = is_guessing(answers, dataset.labels, classes)
    if other is not None:
        said = other.words(dataset.folders)
        if assumed or guesses:
            raise DataError(said)
        return [said]
    if guesses:
        odd = odd_scale(spec)
        if not is_guessing(logits.argmin(axis=1), dataset.labels, classes):
            odd = "the lowest score is mostly that of the right class: where the model gives "
            odd += "distances, export it with their negatives, for a guard takes the highest"
        raise DataError(
            f"the model answers {(answers == dataset.labels).mean():.1%} of these images right, of "
            f"{classes} classes, hardly more than by chance: labels or pixels are not what it was "
            "trained on. See --preprocessing, --scale, --mean, --std and --bgr for pixels, "
            f"--classes for labels{f'; {odd}' if odd else ''}"
        )
    return []


def _check_pixels(
    reader: Reader,
    dataset: Dataset,
    right: NDArray[np.bool_],
    *,
    likely: float,
    as_given: bool,
    seed: int,
) -> list[str]:
    """Return words on a preprocessing that looks wrong.

    Args:
        reader: of the model.
        dataset: the images.
        right: bool, (N,). Which the model answers right.
        likely: the share of right answers that something else explains: other labels, or chance.
        as_given: whether to go on all the same.
        seed: of the choice of images.

    Raises:
        DataError: it looks wrong, and nobody said that it is meant.
    """
    odd = odd_scale(reader.spec)
    words = [odd] if odd else []

    def answers(spec: InputSpec, images: Images) -> NDArray[np.int64]:
        found: NDArray[np.int64] = predict(reader.prepared(spec), images).argmax(axis=1)
        return found

    better = better_guess(
        answers, reader.spec, dataset.images, dataset.labels, given=right, seed=seed
    )
    if better is not None and better.right > likely * better.images:
        said = better.words(reader.spec)
        if better.is_clear and not as_given:
            raise DataError(
                f"{said}: say which by these options, or go on with --preprocessing-as-given"
                f"{f'; {odd}' if odd else ''}"
            )
        words.append(said)
    return words


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
            real = value.astype(np.float32, copy=False)
            real = real - np.float32(tap.off) if tap.off else real
            count[i] += np.count_nonzero(real > 0)
            total[i] += np.fmax(real, 0).sum(dtype=np.float64)
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

    Rates of 32 MiB or more lie in a file.

    Args:
        reader: of the model.
        images: uint8, (M, H, W, C).
        rows: int64, (N,). Which of them; all by default.
    """
    rates, logits, done = np.empty((0, 0), np.float32), [], 0
    for some, answers in _chunks(reader, images, rows):
        if not done:
            rates = empty_array((len(images if rows is None else rows), some.shape[1]), np.float32)
        rates[done : done + len(some)] = some
        done += len(some)
        logits.append(answers)
        release(rates)
    return rates, np.concatenate(logits)


def _chunks(
    reader: Reader, images: Images, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    chunk = chunk_of(images)
    for start in range(0, len(images if rows is None else rows), chunk):
        part = slice(start, start + chunk)
        yield reader.read(images[part if rows is None else rows[part]])
        release(images)


def chunk_of(images: Images) -> int:
    """Return how many images to run at a time, so that what they activate stays in the cache.

    EfficientNet-Lite0, 224 pixels, one thread: 10.0 ms an image and 42 MB at 4, 10.8 and 191 at
    16, 11.4 and 787 at 64. Read at all taps and levels 13.9 ms and 135 MB at 2, 13.7 and 236 at 4.
    """
    return chunk_of_values(int(images[0].size))


def chunk_of_values(values: int) -> int:
    """Return the same for images of so many values."""
    return min(CHUNK, max(LEAST_CHUNK, CHUNK_VALUES // values))
