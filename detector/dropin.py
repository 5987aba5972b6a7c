"""A guarded model in place of an `onnxruntime.InferenceSession`: same calls, verdicts beside."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.compile.guarded import (
    CHALLENGER_SCORE,
    EVIDENCE,
    LIKELIHOOD,
    LOGITS,
    RATES,
    SCORE,
)
from reluguard.detector.model import OUTPUT_PREFIX
from reluguard.detector.runtime import Guard, RawOutputs
from reluguard.detector.verdict import Readings, Verdicts

__all__ = ["GuardedSession"]


class GuardedSession:
    """What `onnxruntime.InferenceSession(model)` is, with a guard in the same pass.

    `run`, `get_inputs` and `get_outputs` are those of the production model: same names, shapes,
    types, values and errors. Verdicts come beside them, by `run_with_verdicts`, by `verdicts` after
    a run of the same thread, or by a function that is called with them. Safe to call from several
    threads. IO binding is not offered: it has no place for what the guard says.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard.
        guard: the guard's folder.
        on_verdicts: called after each run, in its thread.
        options: as `Guard.open`.

    Raises:
        DetectorError: as `Guard.open`.

    Example:
        >>> session = GuardedSession("model.onnx", "guards/r20")  # doctest: +SKIP
        >>> logits = session.run(None, {"image": x})[0]  # doctest: +SKIP
        >>> session.verdicts.is_adversarial  # doctest: +SKIP
        array([False])
    """

    def __init__(
        self,
        model: Path | str | None,
        guard: Path | str,
        *,
        on_verdicts: Callable[[Verdicts], None] | None = None,
        **options: Any,
    ) -> None:
        self.guard = Guard.open(model, guard, **options)
        self._session = self.guard.session
        self._on_verdicts = on_verdicts
        self._last = threading.local()
        self._outputs = [
            node for node in self._session.get_outputs() if not node.name.startswith(OUTPUT_PREFIX)
        ]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: Any = None,
    ) -> list[Any]:
        """Return the named outputs, all of the production model's for None.

        `reluguard_score`, `reluguard_likelihood`, `reluguard_is_adversarial` and
        `reluguard_evidence` may be named too: they are the first look's. What both looks say
        together stands in the verdicts alone.
        """
        return self.run_with_verdicts(output_names, input_feed, run_options)[0]

    def run_with_verdicts(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: Any = None,
    ) -> tuple[list[Any], Verdicts]:
        """Return what `run` returns, and the verdicts on the same images."""
        names = list(output_names or (node.name for node in self._outputs))
        own = [SCORE, LIKELIHOOD, EVIDENCE]
        if self.guard.challenger is not None:
            own.append(CHALLENGER_SCORE)
        answer = self.guard.answer
        if self.guard.again is not None:
            own += [RATES, LOGITS]
        fetch = list(dict.fromkeys([*names, answer, *own]))
        values = dict(
            zip(fetch, self._session.run(fetch, dict(input_feed), run_options), strict=True)
        )
        first = self.guard.verdicts(
            RawOutputs(
                outputs={n: v for n, v in values.items() if not n.startswith(OUTPUT_PREFIX)},
                prediction=self.guard.classes(np.asarray(values[answer])),
                score=values[SCORE],
                likelihood=values[LIKELIHOOD],
                evidence=values[EVIDENCE],
                readings=Readings(rates=values[RATES], logits=values[LOGITS])
                if RATES in fetch
                else None,
                challenger_score=values.get(CHALLENGER_SCORE),
            )
        )
        verdicts = self.guard.look_again(np.asarray(input_feed[self.guard.spec.name]), first)
        self._last.verdicts = verdicts
        if self._on_verdicts is not None:
            self._on_verdicts(verdicts)
        return [values[name] for name in names], verdicts

    @property
    def verdicts(self) -> Verdicts | None:
        """The verdicts of this thread's last run, None before it."""
        return getattr(self._last, "verdicts", None)

    def get_inputs(self) -> list[Any]:
        """Return the production model's inputs, as ONNX Runtime has them."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Return the production model's outputs, as ONNX Runtime has them."""
        return list(self._outputs)

    def get_overridable_initializers(self) -> list[Any]:
        """Return the production model's overridable initialisers."""
        return list(self._session.get_overridable_initializers())

    def get_modelmeta(self) -> Any:
        """Return the model's metadata."""
        return self._session.get_modelmeta()

    def get_providers(self) -> list[str]:
        """Return the execution providers in use."""
        return list(self._session.get_providers())

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """Return their options."""
        return dict(self._session.get_provider_options())

    def get_session_options(self) -> Any:
        """Return the session's options."""
        return self._session.get_session_options()
