"""Draws the explanation's pictures: `python docs/drawings/draw.py` writes the SVG files beside it.

Plain SVG, the same on every machine; a test holds the committed files to what this writes. No figure in
them is a measurement: they show how things hang together.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
INK, GREY, PALE = "#1f2937", "#6b7280", "#e5e7eb"
CLEAN, ATTACK, GUARD = "#2563eb", "#c2410c", "#047857"
_FONT = "font-family='system-ui, sans-serif'"


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a whole picture, white behind, with a title for those who can't see it."""
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {_FONT}>"
    back = f"<rect width='{width}' height='{height}' fill='white'/>"
    return "\n".join([head, f"<title>{title}</title>", back, *parts, "</svg>", ""])


def text(
    x: float, y: float, words: str, *, size: int = 15, fill: str = INK, anchor: str = "middle",
    bold: bool = False,
) -> str:  # fmt: skip
    """Return one line of words."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{words}</text>"
    )


def box(
    x: float, y: float, w: float, h: float, words: Sequence[str], *, stroke: str = INK,
    fill: str = "white", size: int = 15,
) -> str:  # fmt: skip
    """Return a box with lines of words in its middle; the first one is bold."""
    step = size + 5
    top = y + h / 2 - step * (len(words) - 1) / 2 + size * 0.35
    lines = [
        text(x + w / 2, top + i * step, line, size=size if i == 0 else size - 1, bold=i == 0)
        for i, line in enumerate(words)
    ]
    frame = (
        f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='7' fill='{fill}' "
        f"stroke='{stroke}' stroke-width='2'/>"
    )
    return "\n".join([frame, *lines])


def arrow(x1: float, y1: float, x2: float, y2: float, *, stroke: str = INK) -> str:
    """Return a straight arrow."""
    angle = math.atan2(y2 - y1, x2 - x1)
    left, right = (
        (x2 - 10 * math.cos(angle + turn), y2 - 10 * math.sin(angle + turn))
        for turn in (0.45, -0.45)
    )
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2 - 6 * math.cos(angle):.1f}' "
        f"y2='{y2 - 6 * math.sin(angle):.1f}' stroke='{stroke}' stroke-width='2'/>"
        f"<path d='M{x2:g} {y2:g} L{left[0]:.1f} {left[1]:.1f} L{right[0]:.1f} {right[1]:.1f} Z' "
        f"fill='{stroke}'/>"
    )


def curve(points: Sequence[tuple[float, float]], *, stroke: str, fill: str = "none") -> str:
    """Return a line through these points; filled, with what lies below it."""
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return (
        f"<path d='{path}' fill='{fill}' fill-opacity='.25' stroke='{stroke}' stroke-width='2.5'/>"
    )


def one_pass() -> str:
    """Return how an image goes through the guarded model."""
    parts = [box(20, 70, 100, 70, ["image"], fill="#eff6ff", stroke=CLEAN)]
    parts.append(
        "<rect x='160' y='34' width='470' height='300' rx='10' fill='none' stroke='#6b7280' "
        "stroke-width='2' stroke-dasharray='7 6'/>"
    )
    parts.append(text(395, 24, "one ONNX file, one run", fill=GREY, size=15))
    for i, name in enumerate(("gates 1", "gates 2", "gates 3", "gates 4")):
        x = 180 + i * 112
        parts.append(box(x, 70, 92, 70, [name, "your network"], size=14))
        parts.append(arrow(x - (60 if i == 0 else 20), 105, x, 105))
        parts.append(arrow(x + 46, 142, x + 46, 190, stroke=GUARD))
    parts += [
        box(
            180,
            192,
            428,
            60,
            ["how often did each channel fire,", "and what was the image before?"],
            stroke=GUARD,
            size=14,
        ),
        arrow(395, 254, 395, 276, stroke=GUARD),
        box(
            265,
            278,
            260,
            46,
            ["a small judge,", "which sees the answer too"],
            stroke=GUARD,
            size=14,
        ),
        arrow(608, 105, 672, 105),
        box(674, 70, 110, 70, ["answer", "unchanged"], size=15),
        arrow(525, 301, 672, 301, stroke=GUARD),
        box(674, 262, 110, 74, ["verdict", "p-value,", "likelihood"], stroke=GUARD, size=15),
    ]
    return svg(
        800, 350, "An image passes through the network once; its gates are read on the way.", parts
    )


def by_depth() -> str:
    """Return what each depth takes an attacked image for."""
    parts = [
        text(
            20,
            30,
            "A dog, changed so that the network answers “cat”",
            anchor="start",
            bold=True,
            size=16,
        ),
        arrow(90, 270, 780, 270),
        text(435, 302, "depth: from the first gates to the last", fill=GREY),
        text(80, 90, "dog", anchor="end"),
        text(80, 235, "cat", anchor="end"),
    ]
    ends = range(9)
    clean = [(110 + i * 80, 85 + 3 * math.sin(i)) for i in ends]
    turned = [(110 + i * 80, 88 + 145 / (1 + math.exp(-(i - 6.6) * 2.2))) for i in ends]
    parts += [curve(clean, stroke=CLEAN), curve(turned, stroke=ATTACK)]
    parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='6' fill='{ATTACK}'/>" for x, y in turned]
    parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{CLEAN}'/>" for x, y in clean]
    parts += [
        text(300, 66, "the same dog, untouched", fill=CLEAN),
        text(470, 190, "attacked: still a dog in the early gates,", fill=ATTACK),
        text(470, 210, "a cat only where the answer is made", fill=ATTACK),
    ]
    return svg(800, 320, "By depth, an attacked image changes sides late.", parts)


def _bell(middle: float, width: float, height: float, base: float) -> list[tuple[float, float]]:
    return [
        (x, base - height * math.exp(-(((x - middle) / width) ** 2) / 2)) for x in range(40, 761, 6)
    ]


def p_value() -> str:
    """Return scores of clean and attacked images, and the share that a p-value counts."""
    base, limit = 250, 470
    clean, attacked = _bell(270, 95, 175, base), _bell(590, 85, 150, base)
    tail = [(x, y) for x, y in clean if x >= limit]
    area = [(limit, base), *tail, (760, base)]
    parts = [
        curve([*clean], stroke=CLEAN),
        curve([*attacked], stroke=ATTACK),
        curve(area, stroke=CLEAN, fill=CLEAN),
        arrow(30, base, 780, base),
        text(740, 275, "score", fill=GREY),
        (
            f"<line x1='{limit}' y1='60' x2='{limit}' y2='{base}' stroke='{INK}' stroke-width='2' "
            "stroke-dasharray='6 5'/>"
        ),
        text(limit, 48, "threshold", bold=True),
        text(220, 62, "clean images", fill=CLEAN),
        text(630, 88, "attacked images", fill=ATTACK),
        arrow(440, 302, 484, 243, stroke=CLEAN),
        text(300, 318, "the p-value of an image that scores here:", fill=CLEAN),
        text(300, 338, "this share of clean images scores as high or higher", fill=CLEAN),
        text(620, 318, "left of the threshold:", fill=ATTACK),
        text(620, 338, "attacks that are missed", fill=ATTACK),
    ]
    return svg(
        800,
        355,
        "Clean and attacked scores overlap; the threshold sets how many clean are flagged.",
        parts,
    )


def attackers() -> str:
    """Return five attackers by what they know."""
    rows = (
        ("Transfer", "knows the task, attacks a model of their own", 0.12),
        ("Query", "asks your model thousands of times", 0.3),
        ("White box, unaware", "has your weights, does not know of the guard", 0.5),
        ("Query, aware", "knows of the guard and sees its scores", 0.75),
        ("White box, aware", "has the weights of model and guard", 1.0),
    )
    parts = [
        text(20, 28, "what they know", anchor="start", fill=GREY),
        text(780, 28, "how far they get", anchor="end", fill=GREY),
    ]
    for i, (name, knows, power) in enumerate(rows):
        y = 44 + i * 58
        colour = ATTACK if i >= 3 else CLEAN
        parts += [
            text(20, y + 24, name, anchor="start", bold=True),
            text(20, y + 43, knows, anchor="start", fill=GREY, size=14),
            f"<rect x='430' y='{y + 12}' width='350' height='26' rx='5' fill='{PALE}'/>",
            f"<rect x='430' y='{y + 12}' width='{350 * power:g}' height='26' rx='5' fill='{colour}'/>",
        ]
    parts.append(
        text(
            400,
            352,
            "Order, not measurement: figures are on the page Measured.",
            fill=GREY,
            size=13,
        )
    )
    return svg(800, 366, "Five attackers, from knowing little to knowing everything.", parts)


def knowing() -> str:
    """Return why two targets can be met at once."""

    def circle(x: float, y: float, r: float, fill: str) -> str:
        return f"<circle cx='{x}' cy='{y}' r='{r}' fill='{fill}' fill-opacity='.18' stroke='{fill}' stroke-width='2'/>"

    parts = [
        f"<rect x='150' y='40' width='500' height='250' rx='120' fill='none' stroke='{GREY}' stroke-width='2' stroke-dasharray='7 6'/>",
        text(400, 28, "all pictures that look the same to a person", fill=GREY),
        circle(330, 165, 95, GUARD),
        circle(470, 165, 95, ATTACK),
        text(304, 160, "looks clean", fill=GUARD),
        text(304, 180, "to the guard", fill=GUARD),
        text(496, 160, "the network", fill=ATTACK),
        text(496, 180, "answers wrong", fill=ATTACK),
        f"<circle cx='400' cy='165' r='8' fill='{INK}'/>",
        arrow(400, 330, 400, 178),
        text(400, 348, "one point in both is enough for an attacker who can look for it"),
    ]
    return svg(
        800, 364, "Wrong and clean-looking overlap, and the gradient of both leads there.", parts
    )


def second_look() -> str:
    """Return how suspicious images are looked at again."""
    parts = [
        box(20, 70, 100, 60, ["images"], fill="#eff6ff", stroke=CLEAN),
        arrow(120, 100, 168, 100),
        box(170, 60, 170, 80, ["first look", "in the same pass", "as the answer"], stroke=GUARD),
        arrow(340, 85, 628, 85),
        text(484, 74, "most: nothing suspicious", fill=GREY, size=14),
        arrow(255, 142, 255, 208, stroke=ATTACK),
        text(266, 180, "a suspicious few", fill=ATTACK, size=14, anchor="start"),
        box(
            130,
            210,
            250,
            80,
            ["second look", "a mirrored or smaller view,", "or another network"],
            stroke=ATTACK,
        ),
        arrow(380, 250, 438, 250, stroke=ATTACK),
        box(440, 215, 150, 70, ["both readings", "judged together"], stroke=ATTACK),
        arrow(590, 238, 672, 142, stroke=ATTACK),
        box(630, 60, 150, 80, ["one p-value", "calibrated as", "one procedure"], stroke=GUARD),
    ]
    return svg(800, 310, "What the first look finds suspicious is looked at again.", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "one-pass.svg": one_pass,
    "by-depth.svg": by_depth,
    "p-value.svg": p_value,
    "attackers.svg": attackers,
    "knowing.svg": knowing,
    "second-look.svg": second_look,
}

if __name__ == "__main__":
    for name, drawn in PICTURES.items():
        (HERE / name).write_text(drawn(), encoding="utf-8")
