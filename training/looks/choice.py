"""Which second look serves a model: measured on clean images. N images.

A view serves where the model agrees with itself on it: mirrored photographs, not mirrored digits or
road signs. What of attacks a view shows can't be told from clean images, so of several that serve
the first in the order of `VIEWS` is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import DetectorError, did_you_mean
from reluguard.detector.images import InputSpec
from reluguard.detector.looks.again import find_file, find_network
from reluguard.detector.looks.second import Look
from reluguard.detector.looks.views import SAME, VIEWS, viewed
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.taps import Tap, survey
from reluguard.training.data.case import (
    LEVEL_IMAGES,
    Case,
    predict,
    with_blocks,
    with_levels,
)
from reluguard.training.errors import DataError

__all__ = ["AUTO", "NONE", "Second", "check_second", "choose_second"]

AUTO, NONE = "auto", "none"
IMAGES = 1000
AGREEMENT = 0.9  # of clean images on which both looks must give one answer, to be taken by itself
LOSS = 0.02  # of clean images that it may answer right less often
LEAST = 0.5  # agreement of what was asked for by name: less is no second opinion


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """The second look of a fit, small enough to hand to another process.

    Attributes:
        look: who looks at what.
        file: the ONNX file of who looks.
        output: its output with the class scores.
        taps: that are read of it.
    """

    look: Look
    file: Path
    output: str
    taps: tuple[Tap, ...]

    @classmethod
    def of_guard(
        cls, artifact: GuardArtifact, model: Path, other: Path | str | None = None
    ) -> "Second | None":
        """Return the second look of a guard, None where it has none.

        Args:
            artifact: the guard.
            model: the production model's file.
            other: the other network's, where one looks; by default found as `Guard.open` does.

        Raises:
            SettingsError: the other network is not there.
            ModelMismatchError: it is another one than at fitting.
        """
        second = artifact.second
        if second is None:
            return None
        find_network(second.look, artifact.path, model, other)  # that it is the very one
        file = find_file(second.look, artifact.path, model, other) or model
        output = second.look.answer or artifact.manifest.answer
        return cls(look=second.look, file=file, output=output, taps=second.taps)

    def network(self, spec: InputSpec) -> tuple[Production, InputSpec]:
        """Return who looks, at the view, and how images go into it.

        Args:
            spec: how images go into the production model.
        """
        production = load_production(self.file, output=self.output)
        own = replace(spec, name=production.input.name)
        return viewed(production, own, self.look.view), own

    def reader(self, spec: InputSpec, *, threads: int | None) -> Reader:
        """Return what reads it."""
        return Reader(*self.network(spec), self.taps, threads=threads)

    def read_of(self, taps: tuple[Tap, ...]) -> "Second":
        """Return the same of a first look that reads these taps alone."""
        return self if self.look.is_other else replace(self, taps=taps)


def check_second(how: str) -> None:
    """Raise DataError unless it is said who looks again, in words that `choose_second` knows."""
    known = (AUTO, NONE, *VIEWS)
    if how not in known and not Path(how).is_file():
        raise DataError(
            f"expected a second look of {', '.join(known)}, or the ONNX file of another network, "
            f"got {how!r}{did_you_mean(how, known)}"
        )


def choose_second(
    how: str, case: Case, reader: Reader, *, levels: Sequence[float], threads: int | None
) -> tuple[Second | None, str]:
    """Return the second look, None where there is none, and what people should know of it.

    Args:
        how: "auto" takes the first of `VIEWS` that serves, "none" none; a view by its name; or the
            ONNX file of another network of the same classes and the same input.
        case: the model and its images.
        reader: of the model.
        levels: that taps of another network are read at, as those of the model.
        threads: of ONNX Runtime.

    Raises:
        DataError: no such view or file; another network that takes another input, has other
            classes, or does not know these images.
        ModelError: the other network can't be read or run.
        NoTapsError: it has no gate to read.
    """
    check_second(how)
    if how == NONE:
        return None, ""
    sources = case.splits["fit"]
    rows = sources[sources < len(case.dataset)][:IMAGES]
    images, labels = case.dataset.images[rows], case.dataset.labels[rows]
    own = predict(reader, images).argmax(axis=1)
    judged = _Judged(own, labels)
    if how not in {AUTO, *VIEWS}:
        return _other(Path(how), case, rows, judged, levels, threads)
    found = {}
    for name in VIEWS if how == AUTO else (how,):
        network = viewed(case.production, case.spec, name)
        seen = predict(Reader(network, case.spec, case.taps, threads=threads), images)
        agreement, loss = judged.of(seen.argmax(axis=1))
        found[name] = agreement
        if how == AUTO and not (agreement >= AGREEMENT and loss <= LOSS):
            continue
        if agreement < LEAST:
            raise DataError(
                f"expected a view on which the model agrees with itself, at {name} it gives the "
                f"same answer on {agreement:.1%} of clean images: take another or --second none"
            )
        second = Second(
            look=Look(view=name, agreement=round(agreement, 4)),
            file=case.path,
            output=case.production.answer,
            taps=case.taps,
        )
        return second, (
            f"second look: {name}, on which the model agrees with itself on {agreement:.1%} of "
            "clean images"
        )
    tried = ", ".join(f"{name} {agreement:.1%}" for name, agreement in found.items())
    return None, (
        f"no second look: on no view does the model agree with itself often enough ({tried}; "
        f"{AGREEMENT:.0%} are needed): another network of the same classes can look, by --second "
        "FILE.onnx"
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the model answers, (N,), and what is right."""

    answers: NDArray[np.int64]
    labels: NDArray[np.int64]

    def of(self, others: NDArray[np.int64]) -> tuple[float, float]:
        """Return how often other answers agree, and how much less often they are right."""
        right = float((self.answers == self.labels).mean())
        return float((others == self.answers).mean()), right - float((others == self.labels).mean())


def _other(
    file: Path,
    case: Case,
    rows: NDArray[np.int64],
    judged: _Judged,
    levels: Sequence[float],
    threads: int | None,
) -> tuple[Second, str]:
    """Return the second look of another network."""
    network = load_production(file)
    images = case.dataset.images[rows]
    if network.sha256 == case.production.sha256:
        raise DataError(f"expected another network to look again, {file} is the model itself")
    mine, theirs = case.production.input, network.input
    fits = mine.dtype == theirs.dtype and len(mine.shape) == len(theirs.shape)
    if not fits or any(
        a != b
        for a, b in zip(mine.shape, theirs.shape, strict=True)
        if a is not None and b is not None
    ):
        raise DataError(
            f"expected a second network that takes the model's input, {mine.dtype} {mine.shape}, "
            f"{file} takes {theirs.dtype} {theirs.shape}"
        )
    spec = replace(case.spec, name=network.input.name)
    gates = survey(network, spec)
    taps = with_blocks(gates.taps)
    if levels:
        taps = with_levels(network, spec, taps, case.dataset.images[:LEVEL_IMAGES], levels)
    try:
        scores = predict(Reader(network, spec, taps, threads=threads), images)
    except DetectorError as error:
        raise DataError(f"the second network {file} can't take these images: {error}") from error
    classes = predict(Reader(case.production, case.spec, case.taps, threads=threads), images[:1])
    if scores.shape[1] != classes.shape[1]:
        raise DataError(
            f"expected a second network of the model's {classes.shape[1]} classes, "
            f"{file} has {scores.shape[1]}"
        )
    agreement, _ = judged.of(scores.argmax(axis=1))
    if agreement < LEAST:
        raise DataError(
            f"expected a second network that answers as the model does, {file} gives the same "
            f"answer on {agreement:.1%} of clean images: are its classes in the same order, and "
            "does it take pixels prepared in the same way?"
        )
    second = Second(
        look=Look(
            view=SAME,
            model_sha256=network.sha256,
            file=file.name,
            answer=network.answer,
            taps=tuple(tap.to_json() for tap in taps),
            agreement=round(agreement, 4),
        ),
        file=file,
        output=network.answer,
        taps=taps,
    )
    return second, (
        f"second look: {file.name}, which gives the model's answer on {agreement:.1%} of clean "
        "images"
    )
