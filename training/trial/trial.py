"""One picture at a time through attacks, harmless changes and the guard. H rows, W columns."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images, decode_image
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdict
from reluguard.training.attacks import Attack
from reluguard.training.attacks.victim import Victim, open_victim
from reluguard.training.changes.base import Change
from reluguard.training.data.classes import Classes, class_names, guard_data, known_classes
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.holdout import unseen_rows
from reluguard.training.data.reading import Reading
from reluguard.training.errors import AttackError, DataError, TwinError
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.trial.tools import ATTACK_TOOLS, CHANGE_TOOLS
from reluguard.training.twin.twin import load_twin

__all__ = ["Look", "Sample", "Trial", "Tried", "open_trial"]

_SAMPLES = 12
_TWIN_IMAGES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture to begin with: uint8 (H, W, C), and its class where that is known."""

    image: Images
    label: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A picture, and what model and guard say of it.

    Attributes:
        image: uint8, (H, W, C), as the model gets it.
        verdict: the guard's.
        shares: float64, (K,). The model's class scores as shares of one, by softmax.
    """

    image: Images
    verdict: Verdict
    shares: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of one picture.

    Attributes:
        before: as it came.
        after: with everything done to it; the same where nothing was.
        linf: largest change of a value by the attack, in 8-bit steps; 0 without one.
        fooled: whether the attack alone changed the answer.
    """

    before: Look
    after: Look
    linf: float
    fooled: bool


class Trial:
    """A guard to play with. One run at a time, from any thread.

    Args:
        guard: the guard.
        victim: its model, for the attacks.
        names: of the classes, in the order of the model's outputs; those beyond are numbered.
        samples: pictures to begin with.
        without_gradients: why attacks that need them are not to be had, None where they are.
    """

    def __init__(
        self,
        guard: Guard,
        victim: Victim,
        *,
        names: Sequence[str] = (),
        samples: Sequence[Sample] = (),
        without_gradients: str | None = None,
    ) -> None:
        self.guard = guard
        self.names = tuple(names)
        self.samples = tuple(samples)
        self.without_gradients = without_gradients
        self._victim = victim
        self._lock = threading.Lock()

    def name(self, label: int) -> str:
        """Return what a class is called."""
        return self.names[label] if label < len(self.names) else f"class {label}"

    def decode(self, data: bytes) -> Images:
        """Return an encoded picture as the model gets it, uint8 (H, W, C).

        Raises:
            ImageError: it is no JPEG, PNG or WebP, or damaged.
            ImageTooLargeError: it has too many pixels.
        """
        # a copy of our own: torch takes no array that can't be written to
        return np.array(decode_image(data, self.guard.spec))

    def run(
        self,
        image: Images,
        *,
        attack: str | None = None,
        strength: float | None = None,
        change: str | None = None,
        amount: float | None = None,
        seed: int = 0,
    ) -> Tried:
        """Attack a picture, change what came out of it, and say what the guard says of both.

        An attack leads away from what the model answers; it knows the model and not the guard.

        Args:
            image: uint8, (H, W, C), of the model's size.
            attack: a key of `ATTACK_TOOLS`, None for none.
            strength: of the attack, on its slider; by default where that begins.
            change: a key of `CHANGE_TOOLS`, None for none.
            amount: of the change, likewise.
            seed: of every random choice.

        Raises:
            AttackError: no such tool, a strength off its slider, or gradients that are not to be
                had.
            ImageError: the picture is not of the model's size.
        """
        with self._lock:
            before = self._look(image)
            attacked, linf, fooled = image, 0.0, False
            if attack is not None:
                made = self._attack(attack, strength)
                label = np.array([before.verdict.prediction], np.int64)
                found = made(image[None], label, self._victim, seed=seed)
                attacked, linf = found.images[0], float(found.linf[0])
                fooled = bool(found.success[0])
            if change is not None:
                attacked = self._change(change, amount)(attacked[None], seed=seed)[0]
            same = attacked is image
            return Tried(
                before=before,
                after=before if same else self._look(attacked),
                linf=linf,
                fooled=fooled,
            )

    def _attack(self, name: str, strength: float | None) -> Attack:
        if name not in ATTACK_TOOLS:
            raise AttackError(f"expected an attack of {', '.join(ATTACK_TOOLS)}, got {name!r}")
        tool = ATTACK_TOOLS[name]
        if tool.needs_gradients and self.without_gradients is not None:
            raise AttackError(f"{name} needs gradients: {self.without_gradients}")
        value = 0.0
        if tool.slider is not None:
            value = tool.slider.start if strength is None else strength
            tool.slider.check(value)
        spec = self.guard.spec
        return tool.make(value, (spec.height, spec.width, spec.channels))

    def _change(self, name: str, amount: float | None) -> Change:
        if name not in CHANGE_TOOLS:
            raise AttackError(f"expected a change of {', '.join(CHANGE_TOOLS)}, got {name!r}")
        tool = CHANGE_TOOLS[name]
        value = tool.slider.start if amount is None else amount
        tool.slider.check(value)
        return tool.make(value)

    def _look(self, image: Images) -> Look:
        scores = self._victim.predict(image[None])[0].astype(np.float64)
        scores = np.exp(scores - scores.max())
        return Look(
            image=image,
            verdict=self.guard.inspect(image[None])[0],
            shares=scores / scores.sum(),
        )


def open_trial(
    model: ModelOrNone,
    guard: Path | str,
    *,
    data: Data | None = None,
    classes: Classes | None = None,
    twin: str = "auto",
    weights: Path | str | None = None,
    threads: int | None = None,
) -> Trial:
    """Return a guard to play with.

    Without gradients, attacks that only ask the model are left, and `without_gradients` says why.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder.
        data: labelled images to begin with, as `fit` takes them; by default the guard's own golden
            inputs.
        classes: which class each folder is, and what classes are called; by default what the
            guard knows.
        twin: where gradients come from, as `load_twin` takes it.
        weights: of a network by name, as `fit` takes them.
        threads: of ONNX Runtime.

    Raises:
        ModelError: the model can't be read or run.
        GuardError: the guard can't be read, or is not the model's.
        DataError: the images or the names can't be read.
    """
    file = guard_model(model, guard, weights=weights)
    opened = Guard.open(file, guard, threads=threads)
    manifest = opened.artifact.manifest
    samples = [Sample(image=image, label=None) for image in opened.artifact.golden.images]
    if data is not None:
        found = given_data(data, Reading.of_guard(manifest))
        if found.folders:
            found = guard_data(found, opened, classes)
        if not len(found):
            raise DataError(f"expected at least one image to begin with, {found.source} has none")
        # of images that the guard was fitted on those it has not seen
        unseen = unseen_rows(found, manifest)
        rows = unseen[np.unique(np.linspace(0, len(unseen) - 1, _SAMPLES).astype(int))]
        samples = [Sample(image=found.images[i], label=int(found.labels[i])) for i in rows]
    sample = np.stack([one.image for one in samples])
    why, made = "the twin was set to none", None
    try:
        # a few pictures and their mirror images: golden inputs may be few
        some = np.concatenate([sample, sample[:, :, ::-1]])[:_TWIN_IMAGES]
        made = load_twin(file, opened.spec, twin, images=some, output=manifest.answer)
    except TwinError as error:
        why = str(error)
    return Trial(
        opened,
        open_victim(file, opened.spec, twin=made, output=manifest.answer, threads=threads),
        names=_names(opened, classes),
        samples=samples[:_SAMPLES],
        without_gradients=None if made is not None else why,
    )


def _names(guard: Guard, classes: Classes | None) -> tuple[str, ...]:
    """Return what the classes are called, by word of the user or of the guard."""
    if classes is not None and classes not in ("alphabetical", "numbers"):
        return class_names(classes)
    known = known_classes(guard.artifact.manifest)
    if known.names:
        return known.names
    places = {place: name for name, place in known.folders.items()}
    return tuple(places.get(i, f"class {i}") for i in range(max(places, default=-1) + 1))
