"""Rows of verdicts: cut out of a merged run, and put together again. N images."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from reluguard.detector.verdict import Challenge, FirstLook, Readings, Verdicts

__all__ = ["join", "take"]


def take(verdicts: Verdicts, start: int, stop: int) -> Verdicts:
    """Return these rows of the verdicts."""
    rows = slice(start, stop)
    read, challenge = verdicts.readings, verdicts.challenge
    return Verdicts(
        prediction=verdicts.prediction[rows],
        score=verdicts.score[rows],
        likelihood=verdicts.likelihood[rows],
        p_value=verdicts.p_value[rows],
        is_adversarial=verdicts.is_adversarial[rows],
        evidence=verdicts.evidence[rows],
        outputs={name: output[rows] for name, output in verdicts.outputs.items()},
        readings=None
        if read is None
        else Readings(rates=read.rates[rows], logits=read.logits[rows]),
        challenge=None
        if challenge is None
        else Challenge(score=challenge.score[rows], is_adversarial=challenge.is_adversarial[rows]),
        unscored=verdicts.unscored[rows],
        look=verdicts.look[rows],
        first=None if verdicts.first is None else _first(verdicts.first, rows),
    )


def _first(first: FirstLook, rows: slice) -> FirstLook:
    return FirstLook(**{item.name: getattr(first, item.name)[rows] for item in fields(first)})


def join(parts: Sequence[Verdicts]) -> Verdicts:
    """Return the verdicts of several parts as one, in order. Undoes `take`."""
    read = [part.readings for part in parts if part.readings is not None]
    firsts = [part.first for part in parts if part.first is not None]
    challenges = [part.challenge for part in parts if part.challenge is not None]
    return Verdicts(
        prediction=np.concatenate([part.prediction for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        likelihood=np.concatenate([part.likelihood for part in parts]),
        p_value=np.concatenate([part.p_value for part in parts]),
        is_adversarial=np.concatenate([part.is_adversarial for part in parts]),
        evidence=np.concatenate([part.evidence for part in parts]),
        outputs={
            name: np.concatenate([part.outputs[name] for part in parts])
            for name in parts[0].outputs
        },
        readings=Readings(
            rates=np.concatenate([part.rates for part in read]),
            logits=np.concatenate([part.logits for part in read]),
        )
        if read
        else None,
        challenge=Challenge(
            score=np.concatenate([part.score for part in challenges]),
            is_adversarial=np.concatenate([part.is_adversarial for part in challenges]),
        )
        if challenges
        else None,
        unscored=np.concatenate([part.unscored for part in parts]),
        look=np.concatenate([part.look for part in parts]),
        first=FirstLook(
            **{
                item.name: np.concatenate([getattr(one, item.name) for one in firsts])
                for item in fields(FirstLook)
            }
        )
        if firsts
        else None,
    )
