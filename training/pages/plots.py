"""Drawing for light and dark pages: SVG whose ink is the page's own. L taps, K classes.

Colours are Okabe and Ito's, a little lighter, so that they hold on white and on near-black and for
colour-blind readers; every line also has its own marker.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AMBER",
    "BLUE",
    "CATEGORIES",
    "GREEN",
    "GREY",
    "PINK",
    "RED",
    "Line",
    "bars",
    "canvas",
    "depth_lines",
    "heat_map",
    "svg",
]

BLUE, AMBER, GREEN, PINK, RED, GREY = (
    "#3b82d0",
    "#e39a12",
    "#12a07a",
    "#c873b0",
    "#d8572a",
    "#8a929c",
)
# Paul Tol's "muted" scheme, which is safe for ten categories
CATEGORIES = (
    "#5566bb",
    "#88ccee",
    "#44aa99",
    "#2f8f4e",
    "#aaaa44",
    "#ddcc77",
    "#cc6677",
    "#aa3366",
    "#aa4499",
    "#999999",
)
# stand-ins for what the page's style sheet decides; as they are, they suit white paper
_INK, _RULE = "#1a1f26", "#8b939d"
_MARKERS = "osD^vPX*"
_PREFIX = "data:image/png;base64,"
_PICTURE = re.compile(_PREFIX + r"([A-Za-z0-9+/=\s]+)")
_PALETTE = 256  # colours of a PNG with a palette


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve over depth: its mean, and where known the band around it."""

    label: str
    values: NDArray[Any]
    color: str
    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None
    dashed: bool = False


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes, styled for `svg`; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "reluguard",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _RULE,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _RULE,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.6,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)  # gives text its size while the layout is made
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg(figure: Any, alt: str) -> str:
    """Return the figure as inline SVG in the page's own ink.

    Args:
        figure: from `canvas`, inside its block.
        alt: what it shows, for readers who can't see it.
    """
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(
        r"font: (?:bold|700) ([\d.]+px) [^;\"]*", r"font: 600 \1 system-ui, sans-serif", text
    )
    text = _PICTURE.sub(_smaller, text)
    text = text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    head = f'<svg role="img" aria-label="{escape(alt, quote=True)}" '
    return text.replace("<svg ", head, 1)


def _smaller(found: re.Match[str]) -> str:
    """Return an embedded picture with a palette where it has few colours: a third of the bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as opened:
        pixels = np.asarray(opened.convert("RGBA"))
    colours, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > _PALETTE:
        return found[0]
    picture = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
    picture.putpalette(colours[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, transparency=colours[:, 3].tobytes())
    return _PREFIX + base64.b64encode(buffer.getvalue()).decode()


def depth_lines(
    axes: Any,
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    limits: tuple[float | None, float | None] = (None, None),
    chance: tuple[float, str] | None = None,
) -> None:
    """Draw curves over the taps, first to last; those that say nothing anywhere are left out.

    Args:
        axes: from `canvas`.
        lines: what to draw.
        title: of the panel.
        unit: of the vertical axis.
        limits: of the vertical axis, None for free.
        chance: a level to mark, and its name.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in lines if np.isfinite(line.values).any()]
    if not lines:
        axes.set_visible(False)
        return
    for index, line in enumerate(lines):
        x = np.arange(1, len(line.values) + 1)
        axes.plot(
            x,
            line.values,
            color=line.color,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            linestyle="--" if line.dashed else "-",
            label=line.label,
        )
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=line.color, alpha=0.16, linewidth=0)
    if chance is not None:
        level, name = chance
        axes.axhline(level, color=GREY, linewidth=1, linestyle=":", label=name)
    axes.set_title(title)
    axes.set_xlabel("tap, first to last")
    axes.set_ylabel(unit)
    axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    if len(lines) > 1 or chance is not None:
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, fontsize=9, borderaxespad=0
        )


def heat_map(
    figure: Any,
    axes: Any,
    values: NDArray[Any],
    *,
    title: str,
    unit: str,
    limits: tuple[float, float] | None = None,
    names: Sequence[str] | None = None,
    digits: int | None = None,
    xlabel: str = "tap",
    ylabel: str = "tap",
) -> None:
    """Draw a matrix with its colour bar.

    Args:
        figure: from `canvas`.
        axes: from `canvas`.
        values: (rows, columns).
        title: of the panel.
        unit: of the colour bar.
        limits: of the colours, by default the values' own range.
        names: of rows and columns; by default they are counted from 1.
        digits: writes the values into the cells with so many decimals.
        xlabel: of the columns.
        ylabel: of the rows.
    """
    if not np.isfinite(values).any():
        axes.set_visible(False)
        return
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    picture = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="cividis",
        vmin=low,
        vmax=high,
        interpolation="none",
        aspect="equal" if values.shape[0] == values.shape[1] else "auto",
    )
    axes.grid(visible=False)
    axes.set_title(title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    rows, columns = values.shape
    if names is None:
        axes.set_xticks(_ticks(columns) - 1, _ticks(columns))
        axes.set_yticks(_ticks(rows) - 1, _ticks(rows))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    else:
        axes.set_xticks(np.arange(columns), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(rows), names)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(unit)
    bar.outline.set_visible(False)
    if digits is not None:
        _write_cells(axes, values, low, high, digits)


def _ticks(count: int) -> NDArray[np.int64]:
    step = max(1, round(count / 7))
    return np.arange(1, count + 1, step, dtype=np.int64)


def _write_cells(axes: Any, values: NDArray[Any], low: float, high: float, digits: int) -> None:
    middle = (low + high) / 2
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        text = f"{value:.{digits}f}".replace("0.", ".")
        color = "#000000" if value > middle else "#ffffff"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)


def bars(
    axes: Any,
    groups: Mapping[str, Sequence[tuple[float, float, float]]],
    names: Sequence[str],
    colors: Sequence[str],
    *,
    title: str,
    unit: str,
    mark: tuple[float, str] | None = None,
) -> None:
    """Draw horizontal bars with intervals, one group of bars per name.

    Args:
        axes: from `canvas`.
        groups: per series (value, low, high) for every name.
        names: of the rows, first on top.
        colors: one per series.
        title: of the panel.
        unit: of the horizontal axis.
        mark: a level to mark, and its name.
    """
    height = 0.8 / max(1, len(groups))
    for index, ((label, values), color) in enumerate(zip(groups.items(), colors, strict=False)):
        middle = [value for value, _, _ in values]
        errors = [
            [max(0.0, value - low) for value, low, _ in values],
            [max(0.0, high - value) for value, _, high in values],
        ]
        places = np.arange(len(names)) + (index - (len(groups) - 1) / 2) * height
        axes.barh(
            places,
            middle,
            height * 0.9,
            xerr=errors,
            color=color,
            label=label,
            error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2},
        )
    if mark is not None:
        axes.axvline(mark[0], color=GREY, linestyle=":", linewidth=1.2, label=mark[1])
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(title)
    axes.set_xlabel(unit)
    if len(groups) > 1 or mark is not None:
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3, fontsize=9, borderaxespad=0
        )
