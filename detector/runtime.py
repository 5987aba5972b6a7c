"""A guarded model in this process: tensors or images in, verdicts out. N images, L taps."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact, check_model, read_guard
from reluguard.detector.compile.guarded import (
    CHALLENGER_SCORE,
    EVIDENCE,
    LIKELIHOOD,
    LOGITS,
    RATES,
    SCORE,
    compile_guard,
    compile_reader,
)
from reluguard.detector.errors import GuardError, ImageError, ModelError
from reluguard.detector.head import is_scored, threshold_at
from reluguard.detector.images import Images, InputSpec, check_images, decode_image
from reluguard.detector.looks.again import LookAgain, find_network, looks_of
from reluguard.detector.looks.export import export_twice
from reluguard.detector.looks.judging import Looks
from reluguard.detector.looks.thresholds import Thresholds, thresholds_of
from reluguard.detector.model import Production, TensorInfo, load_production
from reluguard.detector.onnx_file.beside import model_file
from reluguard.detector.onnx_file.weights import read_model
from reluguard.detector.probe import SCORE_TOLERANCE, check_golden
from reluguard.detector.session import in_batches, open_session
from reluguard.detector.taps import Tap
from reluguard.detector.verdict import Challenge, Readings, Verdicts

__all__ = ["Guard", "RawOutputs", "Reader", "in_batches", "model_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOutputs:
    """What one run of a guarded model gave: the production outputs by name, and the guard's own.

    Attributes:
        outputs: the production outputs, untouched.
        prediction: int64, (N,).
        score: float32, (N,).
        likelihood: float32, (N,).
        evidence: float32, (N, L).
        readings: what the head read, if the guard was opened for it.
        challenger_score: float32, (N,), if the guard has a challenger.
    """

    outputs: Mapping[str, NDArray[Any]]
    prediction: NDArray[np.int64]
    score: NDArray[np.float32]
    likelihood: NDArray[np.float32]
    evidence: NDArray[np.float32]
    readings: Readings | None = None
    challenger_score: NDArray[np.float32] | None = None


class Guard:
    """A production model with its guard compiled in. Safe to call from several threads.

    Example:
        >>> guard = Guard.open("model.onnx", "guards/r20")  # doctest: +SKIP
        >>> guard.inspect(images)[0].is_adversarial  # doctest: +SKIP
        False
    """

    def __init__(
        self,
        production: Production,
        artifact: GuardArtifact,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        fpr: float | None = None,
        optimise: bool = True,
        readings: bool = False,
        challenger: GuardArtifact | None = None,
        looks: Looks | None = None,
        second: Production | None = None,
    ) -> None:
        check_model(artifact, production.sha256)
        self.artifact = artifact
        self.looks = looks_of(artifact.second, looks, artifact.path)
        self.fpr = artifact.manifest.fpr if fpr is None else fpr
        self.threshold = threshold_at(self.fpr, artifact.head.clean_scores)
        self._limits = artifact.head.limits(self.fpr)  # the same number, or one for each class
        self.thresholds = thresholds_of(artifact.head, artifact.second, self.fpr, self.looks)
        self.challenger = challenger
        self.challenger_fpr = float("nan")
        self.challenger_thresholds: Thresholds | None = None
        self._production = production
        other = None
        if challenger is not None:
            _check_challenger(challenger, artifact, production)
            self.challenger_fpr = challenger.manifest.fpr if fpr is None else fpr
            self.challenger_thresholds = thresholds_of(challenger.head, None, self.challenger_fpr)
            other = (challenger.manifest.taps, challenger.head)
        self.compiled = compile_guard(
            production,
            artifact.manifest.taps,
            artifact.head,
            fpr=self.fpr,
            readings=readings or self.looks != "first",
            challenger=other,
        )
        self._shows_readings = readings
        self._readings = [RATES, LOGITS] if readings or self.looks != "first" else []
        self._challenger = [] if challenger is None else [CHALLENGER_SCORE]
        self._session = open_session(
            self.compiled, providers=providers, threads=threads, optimise=optimise
        )
        self._names = [info.name for info in production.outputs]
        self.again: LookAgain | None = None
        if artifact.second is not None and self.looks != "first":
            self.again = LookAgain(
                artifact.second,
                artifact.manifest.taps,
                artifact.manifest.input,
                production,
                second,
                looks=self.looks,
                fpr=self.fpr,
                providers=providers,
                threads=threads,
                optimise=optimise,
            )
        golden = self._look_once(artifact.golden.images)
        self.largest_golden_difference = check_golden(artifact.golden, golden)
        if self.again is not None:
            tensor = self.spec.to_tensor(artifact.golden.images)
            self.again.check_golden(tensor, golden, SCORE_TOLERANCE)
        if challenger is not None:
            self._check_challenger_golden(challenger)

    @classmethod
    def open(
        cls,
        model: Path | str | None,
        guard: Path | str,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        fpr: float | None = None,
        readings: bool = False,
        challenger: Path | str | None = None,
        public_key: Path | str | None = None,
        looks: Looks | None = None,
        second_model: Path | str | None = None,
    ) -> "Guard":
        """Return the guarded model, verified: hashes, model binding and golden replay.

        Args:
            model: the production ONNX file; None for the export that `fit` put beside the guard.
            guard: the guard's folder.
            providers: ONNX Runtime's execution providers; CPU by default.
            threads: per run; the cores of the CPU affinity by default.
            fpr: false-positive rate of the verdicts; the guard's own by default.
            readings: let verdicts carry the rates and logits the head read, as capture needs.
            challenger: the folder of a second guard that scores in the same pass, in shadow: its
                verdicts stand in `Verdicts.challenge` and change nothing else.
            public_key: PEM, an Ed25519 public key: both guards must be signed by its owner.
            looks: "first" looks once, "suspicious" looks again at what the first look finds
                suspicious, "always" at every image, which alone helps against an attacker who knows
                of the first look. By default "suspicious" where the guard has a second look.
            second_model: the ONNX file of the network that looks again, of a guard that was fitted
                with one; by default the file of the same name beside the model or the guard.

        Raises:
            ModelError: a model can't be read or run.
            GuardError: a guard is damaged, of another format, not signed as it must be, or fails
                its golden replay.
            ModelMismatchError: a guard was fitted to another model, or with another second one.
            SettingsError: a guard has too few calibration images for this rate, the key is none, or
                there is no second look, or no network for it.
        """
        artifact = _read_signed(guard, public_key)
        other = None if challenger is None else _read_signed(challenger, public_key)
        file = model_file(model, guard)
        production = model_of(artifact, file)
        second = None
        if artifact.second and looks_of(artifact.second, looks, artifact.path) != "first":
            second = find_network(artifact.second.look, artifact.path, file, second_model)
        return cls(
            production,
            artifact,
            providers=providers,
            threads=threads,
            fpr=fpr,
            readings=readings,
            challenger=other,
            looks=looks,
            second=second,
        )

    @property
    def has_readings(self) -> bool:
        """Whether verdicts carry what the head read."""
        return self._shows_readings

    @property
    def session(self) -> ort.InferenceSession:
        """The ONNX Runtime session of the guarded model."""
        return self._session

    @property
    def answer(self) -> str:
        """The production output that holds the class scores."""
        return self._production.answer

    def classes(self, answer: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class the model answers, int64 (N,), by its output `answer`."""
        return self._production.classes(answer)

    def class_scores(self, answer: NDArray[Any]) -> NDArray[Any]:
        """Return its output `answer` with a column per class: (N, K), K at least 2."""
        return self._production.class_scores(answer)

    @property
    def spec(self) -> InputSpec:
        """How images go into the model."""
        return self.artifact.manifest.input

    @property
    def production_inputs(self) -> tuple[TensorInfo, ...]:
        """The model's own inputs."""
        return (self._production.input,)

    @property
    def production_outputs(self) -> tuple[TensorInfo, ...]:
        """The model's own outputs."""
        return self._production.outputs

    def run(self, tensor: NDArray[Any]) -> RawOutputs:
        """Return everything one pass gives on the model's own input tensor.

        Raises:
            ImageError: wrong dtype or shape, not finite, or empty.
            ModelError: the run failed.
        """
        self.spec.check_tensor(tensor)
        return self.run_checked(tensor)

    def run_checked(self, tensor: NDArray[Any]) -> RawOutputs:
        """Return what `run` does, on a tensor that `spec.check_tensor` let pass before.

        Raises:
            ModelError: the run failed.
        """
        own = [*self._readings, *self._challenger]
        fetch = [SCORE, LIKELIHOOD, EVIDENCE, *self._names, *own]
        score, likelihood, evidence, *rest = in_batches(self._session, self.spec, tensor, fetch)
        named = dict(zip(self._names, rest, strict=False))
        more = dict(zip(own, rest[len(named) :], strict=True))
        return RawOutputs(
            outputs=named,
            prediction=self.classes(named[self._production.answer]),
            score=score,
            likelihood=likelihood,
            evidence=evidence,
            readings=Readings(rates=more[RATES], logits=more[LOGITS]) if self._readings else None,
            challenger_score=more.get(CHALLENGER_SCORE),
        )

    def verdicts(self, raw: RawOutputs) -> Verdicts:
        """Return verdicts of the first look, with their p-values, on what `run` gave.

        A row that overflowed inside the network, which its class scores show, has no score and is
        called adversarial: whatever it is, nothing says that it is clean.
        """
        unscored = ~is_scored(raw.score) | ~_is_finite(raw.outputs[self.answer])
        return Verdicts(
            prediction=raw.prediction,
            score=raw.score,
            likelihood=raw.likelihood,
            p_value=self.artifact.head.p_values(raw.score, raw.prediction),
            is_adversarial=self._is_above(raw) | unscored,
            evidence=raw.evidence,
            outputs=raw.outputs,
            readings=raw.readings,
            challenge=None
            if raw.challenger_score is None
            else Challenge(
                score=raw.challenger_score,
                is_adversarial=self._is_above_challenger(raw, raw.challenger_score),
            ),
            unscored=unscored,
        )

    def _is_above(self, raw: RawOutputs) -> NDArray[np.bool_]:
        """Return which rows score above their threshold: bool, (N,)."""
        limits = self._limits[raw.prediction] if len(self._limits) > 1 else self._limits
        above: NDArray[np.bool_] = raw.score > limits
        return above

    def _is_above_challenger(
        self, raw: RawOutputs, scores: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        assert self.challenger is not None
        return self.challenger.head.flags(scores, raw.prediction, self.challenger_fpr)

    def _check_challenger_golden(self, challenger: GuardArtifact) -> None:
        verdicts = self._look_once(challenger.golden.images)
        if verdicts.challenge is None:
            raise GuardError("expected a challenger's scores, the compiled model gave none")
        try:
            check_golden(challenger.golden, replace(verdicts, score=verdicts.challenge.score))
        except GuardError as error:
            raise GuardError(f"the challenger's {error}") from error

    def look_again(self, tensor: NDArray[Any], first: Verdicts) -> Verdicts:
        """Return verdicts after the second look, taken where it is wanted.

        Args:
            tensor: the model's own input tensor.
            first: verdicts of the first look at it, in the same order.

        Raises:
            ModelError: the run failed.
        """
        if self.again is None:
            return first
        rows = np.flatnonzero(self.again.is_wanted(first))
        scores = np.zeros(0, np.float32)
        if len(rows):
            scores = self.again.scores(tensor[rows], self.again.read(first, rows))
        return self.judged(first, rows, scores)

    def judged(
        self, first: Verdicts, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Verdicts:
        """Return the verdicts of both looks together.

        Args:
            first: verdicts of the first look.
            rows: int64, (M,). The rows a second look was taken at: those that are wanted.
            scores: float32, (M,). Their second scores.
        """
        if self.again is None:
            return first
        both = self.again.judged(first, rows, scores)
        return both if self._shows_readings else replace(both, readings=None)

    def exported(self) -> onnx.ModelProto:
        """Return this guard as one self-contained model, its second look in a branch of it.

        Raises:
            ModelError: both looks can't be in one file.
        """
        if self.again is None:
            return self.compiled
        spec = self.spec
        return export_twice(self.compiled, self.again, spec.name, spec.batch, self.fpr)

    def _look_once(self, images: Images) -> Verdicts:
        return self.verdicts(self.run(self.spec.to_tensor(images)))

    def inspect(self, images: Images) -> Verdicts:
        """Return verdicts on uint8 images of shape (N, H, W, C).

        Raises:
            ImageError: dtype, rank or size is not the model's.
        """
        return self.inspect_tensor(self.spec.to_tensor(images))

    def inspect_tensor(self, tensor: NDArray[Any]) -> Verdicts:
        """Return verdicts on the model's own input tensor.

        Raises:
            ImageError: wrong dtype or shape, not finite, or empty.
        """
        return self.look_again(tensor, self.verdicts(self.run(tensor)))

    def inspect_encoded(self, images: Sequence[bytes]) -> Verdicts:
        """Return verdicts on encoded images, brought to the model's size as the guard says.

        Raises:
            ImageError: one does not decode, or there is none.
            ImageTooLargeError: one is larger than the pixel limit.
        """
        if not images:
            raise ImageError("expected at least one image, got an empty batch")
        return self.inspect(np.stack([decode_image(image, self.spec) for image in images]))

    __call__ = inspect


def _is_finite(answer: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of class scores did not overflow; minus infinity masks a class in some."""
    if answer.dtype.kind != "f":
        return np.ones(len(answer), np.bool_)
    finite: NDArray[np.bool_] = np.all(answer < np.inf, axis=tuple(range(1, answer.ndim)))
    return finite


def _read_signed(folder: Path | str, public_key: Path | str | None) -> GuardArtifact:
    if public_key is None:
        return read_guard(folder)
    from reluguard.detector.signature import vouched

    return read_guard(folder, vouch=vouched(folder, Path(public_key)))


def _check_challenger(
    challenger: GuardArtifact, champion: GuardArtifact, production: Production
) -> None:
    check_model(challenger, production.sha256)
    theirs, ours = challenger.manifest, champion.manifest
    for what, got, wanted in (
        ("input", theirs.input, ours.input),
        ("answer", theirs.answer, ours.answer),
    ):
        if got != wanted:
            raise GuardError(
                f"expected a challenger with the champion's {what}, {wanted}: "
                f"{challenger.path} has {got}"
            )


class Reader:
    """A production model that also gives its firing rates and logits: what fitting reads.

    Without taps it gives its logits alone, as fast as the model does.
    """

    def __init__(
        self,
        production: Production,
        spec: InputSpec,
        taps: Sequence[Tap],
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.spec = spec
        model = compile_reader(production, taps)
        self._fetch = [RATES, LOGITS] if taps else [LOGITS]
        self._session = open_session(model, providers=providers, threads=threads)

    def prepared(self, spec: InputSpec) -> "Reader":
        """Return a reader of the same session that prepares images in another way."""
        other = copy.copy(self)
        other.spec = spec
        return other

    def read(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return firing rates (N, D) and logits (N, K), float32.

        Args:
            images: uint8, (N, H, W, C).
        """
        check_images(images)
        return self.read_tensor(self.spec.to_tensor(images))

    def read_tensor(self, tensor: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the same of the model's own input tensor."""
        *rates, logits = in_batches(self._session, self.spec, tensor, self._fetch)
        return rates[0] if rates else np.empty((len(logits), 0), np.float32), logits


def model_of(artifact: GuardArtifact, model: Path | str) -> Production:
    """Return the production model of a guard.

    Args:
        artifact: the guard.
        model: its ONNX file.

    Raises:
        ModelError: the model can't be read.
        ModelMismatchError: it is another one than the guard was fitted to, whatever its outputs
            are called.
    """
    try:
        production = load_production(model, output=artifact.manifest.answer)
    except ModelError:
        check_model(artifact, read_model(Path(model))[1])
        raise
    check_model(artifact, production.sha256)
    return production
