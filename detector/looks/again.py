"""A guard that looks again: the second session, and the verdict of both looks. N images.

Rows that the first look finds suspicious, or all of them, are run once more on the second look's
view. The first look's answers, scores and p-values are what they are without it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError, ModelMismatchError, SettingsError
from reluguard.detector.head import is_scored
from reluguard.detector.images import InputSpec
from reluguard.detector.looks.graph import (
    FIRST_LOGITS,
    FIRST_RATES,
    SECOND_SCORE,
    compile_second,
)
from reluguard.detector.looks.judging import Looks, Order, looks_named
from reluguard.detector.looks.second import Look, SecondLook
from reluguard.detector.looks.views import viewed
from reluguard.detector.model import Production, load_production
from reluguard.detector.session import in_batches, open_session
from reluguard.detector.taps import Tap
from reluguard.detector.verdict import FirstLook, Readings, Verdicts

__all__ = ["LookAgain", "find_file", "find_network", "looks_of"]


def looks_of(second: SecondLook | None, wanted: Looks | None, guard: Path) -> Looks:
    """Return when a guard takes its second look: by default at what is suspicious, if it has one.

    Raises:
        SettingsError: it has none, or there is no such setting.
    """
    if wanted is None:
        return "first" if second is None else "suspicious"
    if looks_named(wanted) != "first" and second is None:
        raise SettingsError(
            f"expected a guard with a second look for looks {wanted}, {guard} has none: "
            "fit it with --second, or take looks first"
        )
    return wanted


def find_network(
    look: Look, guard: Path, model: Path, given: Path | str | None = None
) -> Production | None:
    """Return the other network that a guard looks with; for arguments and errors see `find_file`.

    Raises:
        ModelMismatchError: it is another one than at fitting.
        ModelError: it can't be read.
    """
    found = find_file(look, guard, model, given)
    if found is None:
        return None
    network = load_production(found, output=look.answer or None)
    _check_digest(network, look.model_sha256, found)
    return network


def find_file(look: Look, guard: Path, model: Path, given: Path | str | None = None) -> Path | None:
    """Return the file of the network that a guard looks with, None where the model itself looks.

    Args:
        look: the guard's second look.
        guard: its folder.
        model: the production model's file.
        given: where the other network lies; by default under its name beside model or guard.

    Raises:
        SettingsError: it isn't there, or a network was given to a guard that takes none.
    """
    if not look.is_other:
        if given is not None:
            raise SettingsError(
                f"expected no second model for {guard}, whose second look is the model's own at "
                f"{look.view}"
            )
        return None
    places = [Path(given)] if given else [f.with_name(look.file) for f in (model, guard)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SettingsError(
            f"expected the second network {look.file} of {guard}, "
            f"{' and '.join(map(str, dict.fromkeys(places)))} not there: give its file as "
            "second_model (--second-model), or take looks first"
        )
    return found


def _check_digest(network: Production, wanted: str, what: object) -> None:
    if network.sha256 != wanted:
        raise ModelMismatchError(
            f"the second look was fitted with a network of SHA-256 {wanted[:16]}…, {what} has "
            f"{network.sha256[:16]}…"
        )


class LookAgain:
    """The second look of an opened guard. Safe to call from several threads.

    Args:
        second: the guard's second look.
        first: taps of its first look.
        spec: how images go into the production model.
        production: the production model, which looks itself unless the guard says otherwise.
        other: the other network, of a guard that says so.
        looks: when: "suspicious" or "always".
        fpr: false-positive rate of the verdicts.
        providers, threads, optimise: as for the guard.

    Raises:
        SettingsError: the other network was not given.
        ModelMismatchError: it is another one than at fitting.
    """

    def __init__(
        self,
        second: SecondLook,
        first: tuple[Tap, ...],
        spec: InputSpec,
        production: Production,
        other: Production | None,
        *,
        looks: Looks,
        fpr: float,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        optimise: bool = True,
    ) -> None:
        if second.look.is_other and other is None:
            raise SettingsError(f"expected the second network {second.look.file}, it was not given")
        network = production
        if second.look.is_other and other is not None:
            network = other
            _check_digest(network, second.look.model_sha256, "the one given")
        self.second, self.looks, self.fpr = second, looks, fpr
        self.order: Order = second.order(looks)
        # what is fed is the first network's tensor, under the name that the second one gives it
        self._spec = replace(spec, name=network.input.name)
        self.network = viewed(network, self._spec, second.look.view)
        self.compiled = compile_second(self.network, second, first)
        self._golden = second.golden_score
        self._session = open_session(
            self.compiled, providers=providers, threads=threads, optimise=optimise
        )

    @property
    def session(self) -> ort.InferenceSession:
        """The ONNX Runtime session of the second look."""
        return self._session

    def is_wanted(self, first: Verdicts) -> NDArray[np.bool_]:
        """Return which rows are looked at again: bool, (N,). Those without a score never are."""
        wanted: NDArray[np.bool_] = self.order.is_suspicious(first.score) & ~first.unscored
        return wanted

    def read(self, first: Verdicts, rows: NDArray[np.int64]) -> Readings:
        """Return what the first look read of these rows.

        Raises:
            GuardError: it does not say.
        """
        if first.readings is None:
            raise GuardError("expected verdicts with what the first look read, they have none")
        return Readings(rates=first.readings.rates[rows], logits=first.readings.logits[rows])

    def scores(self, tensor: NDArray[Any], first: Readings) -> NDArray[np.float32]:
        """Return second scores, float32 (M,).

        Args:
            tensor: the model's own input tensor of the rows to look at.
            first: what the first look read of them.

        Raises:
            ModelError: the run failed.
        """
        beside = {FIRST_RATES: first.rates, FIRST_LOGITS: first.logits}
        found = in_batches(self._session, self._spec, tensor, [SECOND_SCORE], beside)[0]
        return found.astype(np.float32, copy=False)

    def judged(
        self, first: Verdicts, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Verdicts:
        """Return the verdicts of both looks: score and likelihood of the look that decided.

        Args:
            first: verdicts of the first look.
            rows: int64, (M,). The rows that were looked at.
            scores: float32, (M,). Their second scores.
        """
        score, likelihood = first.score.copy(), first.likelihood.copy()
        score[rows] = scores
        likelihood[rows] = self.second.likelihood(scores, self.looks)
        looked = np.zeros(len(first), np.bool_)
        looked[rows] = True
        unscored = first.unscored | ~is_scored(score)
        # what has no score stands above everything, as in the first look
        groups = self.second.head.groups_of(first.prediction)
        p_value = self.order.p_values(first.score, score, looked | unscored, groups)
        p_value[unscored] = 1 / (len(self.order.first) + 1)
        return replace(
            first,
            score=score,
            likelihood=likelihood,
            p_value=p_value,
            is_adversarial=self.order.flags(p_value, self.fpr, groups) | unscored,
            unscored=unscored,
            look=np.where(looked, 2, 1).astype(np.uint8),
            first=FirstLook(
                score=first.score,
                likelihood=first.likelihood,
                p_value=first.p_value,
                is_adversarial=first.is_adversarial,
            ),
        )

    def check_golden(self, tensor: NDArray[Any], first: Verdicts, tolerance: float) -> float:
        """Return the largest difference in second scores between now and fitting.

        Args:
            tensor: the golden inputs.
            first: verdicts of the first look at them.
            tolerance: what scores may differ by.

        Raises:
            GuardError: a score differs by more than `tolerance`.
        """
        scores = self.scores(tensor, self.read(first, np.arange(len(first))))
        off = np.abs(scores - self._golden)
        if not (off <= tolerance).all():
            raise GuardError(
                f"golden replay of the second look failed: expected scores within "
                f"{tolerance} of those at fitting, got one that is off by {off.max():.3g}"
            )
        return float(off.max())
