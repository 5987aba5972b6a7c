"""Axes to draw on, and colours."""

from typing import Any

from reluguard.detector.errors import SettingsError

__all__ = ["AMBER", "BLUE", "GREEN", "GREY", "RED", "axes_for"]

# Okabe and Ito's, a little lighter; they hold for colour-blind readers
BLUE, AMBER, GREEN, RED, GREY = "#3b82d0", "#e39a12", "#12a07a", "#d8572a", "#8a929c"


def axes_for(axes: Any, *, width: float = 8.0, height: float = 4.0) -> Any:
    """Return matplotlib axes to draw on: those given, or new ones of this size in inches.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    if axes is None:
        try:
            from matplotlib import pyplot as plt
        except ModuleNotFoundError as error:
            raise SettingsError(
                "expected matplotlib for a plot: pip install 'reluguard[training]'"
            ) from error
        _, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(visible=True, alpha=0.35, linewidth=0.6)
    return axes
