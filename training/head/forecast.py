"""How long heads take to fit, by how much there is to fit them on."""

from reluguard.training.expected.speed import here
from reluguard.training.head.fit import HeadSettings
from reluguard.training.head.probes import most_columns

__all__ = ["head_seconds", "small_head_seconds"]

# Of one core of the reference machine, fitted to times of `fit_judged` under default settings at
# 1,500 to 6,000 rows of 300 and 1,400 rates: within a quarter of each.
_ALWAYS_S = 0.4
_ROW_S = 1e-4
_VALUE_S = 6.5e-7
_USUAL = HeadSettings()
_SMALL = 0.3  # of a head, what a small one takes that judges taps


def head_seconds(rows: int, rates: int, classes: int, settings: HeadSettings) -> float:
    """Return about how long `fit_judged` takes on free cores.

    Args:
        rows: of all groups.
        rates: of each row.
        classes: of the model.
        settings: of the head.
    """
    values = min(rates, most_columns(classes))
    passes = settings.members * settings.epochs / (_USUAL.members * _USUAL.epochs)
    return here(_ALWAYS_S + rows * passes * (_ROW_S + _VALUE_S * values))


def small_head_seconds(rows: int, rates: int, classes: int, settings: HeadSettings) -> float:
    """Return about how long `held_out_auroc` takes; for arguments see `head_seconds`."""
    return _SMALL * head_seconds(rows, rates, classes, settings)
