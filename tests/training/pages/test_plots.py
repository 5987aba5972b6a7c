import base64
import io
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from reluguard.training.pages.page import Section, bullet_list, page, paragraph, table
from reluguard.training.pages.plots import BLUE, Line, bars, canvas, depth_lines, heat_map, svg
from reluguard.training.pages.words import in_order


@pytest.fixture
def drawing() -> str:
    """A figure with lines, a heat map and bars."""
    with canvas(9, 3, 1, 3) as (figure, grid):
        line = Line(
            label="a < b", values=np.arange(4.0), color=BLUE, low=np.zeros(4), high=np.ones(4)
        )
        depth_lines(grid[0, 0], [line, line], title="t", unit="u", chance=(0.5, "chance"))
        heat_map(figure, grid[0, 1], np.eye(3), title="t", unit="u", names=list("xyz"), digits=2)
        bars(grid[0, 2], {"a": [(1, 0.5, 2)]}, ["row"], [BLUE], title="t", unit="u", mark=(1, "m"))
        return svg(figure, 'what "it" shows')


def test_a_picture_of_few_colours_keeps_each_pixel_in_fewer_bytes() -> None:
    """Embedded pictures have a palette where 256 colours do, and are left alone elsewhere."""

    def embedded(values: NDArray[np.float64]) -> Image.Image:
        with canvas(3, 3) as (figure, grid):
            grid[0, 0].imshow(values, interpolation="none", cmap="cividis", vmin=0, vmax=1)
            text = svg(figure, "x")
        (found,) = re.findall(r"base64,([^\"]+)", text)
        return Image.open(io.BytesIO(base64.b64decode(found)))

    values = np.random.default_rng(0).random((40, 40))
    few = embedded(np.ma.masked_less(values, 0.1))
    assert few.mode == "P"
    pixels = np.asarray(few.convert("RGBA"))
    assert (pixels[..., 3] == np.where(values < 0.1, 0, 255)).all()
    colours = (colormaps["cividis"](values) * 255).astype(np.uint8)
    assert (pixels[values >= 0.1] == colours[values >= 0.1]).all()
    many = np.random.default_rng(1).random((40, 40, 3))
    assert embedded(many).mode == "RGBA"


def test_ink_is_the_pages_own(drawing: str) -> None:
    """Text and rules take the page's colours, so the same drawing suits light and dark."""
    assert "currentColor" in drawing
    assert "var(--rule)" in drawing
    assert not re.search(r"fill: #000000|#1a1f26|#8b939d", drawing)


def test_a_drawing_is_xml_that_fetches_nothing(drawing: str) -> None:
    """It parses, says what it shows, and refers to nothing outside itself."""
    root = ET.fromstring(drawing)
    assert root.get("aria-label") == 'what "it" shows'
    links = re.findall(r'(?:href|src)="([^"]*)"', drawing)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "a &lt; b" in drawing


def test_the_same_figure_gives_the_same_bytes() -> None:
    """No date, no random identifier."""
    drawn = []
    for _ in range(2):
        with canvas(3, 2) as (figure, grid):
            grid[0, 0].plot([1, 2])
            drawn.append(svg(figure, "line"))
    assert drawn[0] == drawn[1]


def test_text_is_escaped_and_sections_are_linked() -> None:
    """Words can't break the page, and every chapter is in the table of contents."""
    sections = [Section(title="One & two", body=paragraph("<b>"))]
    text = page("T <1>", "s", bullet_list(["a & b"]), sections)
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert 'href="#one---two"' in text
    assert 'id="one---two"' in text
    assert "T &lt;1&gt;" in text
    assert "<script" not in text


def test_a_chapter_of_its_own_is_named_once() -> None:
    """Its name is the page's title, and stands neither below it nor in the table of contents."""
    text = page("Cuts", "inside m.onnx", "", [Section(title="Cuts", body="x")])
    assert "<h1>Cuts</h1>" in text
    assert "<h2" not in text
    assert "#cuts" not in text


def test_verdicts_are_marked_and_tables_fold() -> None:
    """Yes, no and unclear have their own class; a folded table hides behind a line."""
    text = table(["a", "holds?"], [["x", "yes"], ["y", "no"], ["z", "unclear"]], folded="more")
    for kind, word in (("yes", "yes"), ("no", "no"), ("open", "unclear")):
        assert f'<td class="{kind}" data-name="holds?">{word}</td>' in text
    assert text.startswith("<details><summary>more</summary>")


def test_cells_say_what_they_are_and_keep_their_figures_whole() -> None:
    """On a narrow screen a row is a list of name and figure; an interval may stand below it."""
    text = table(["attack", 'a "b"'], [["pgd", "0.978 [0.951, 0.991]"], ["fgsm", "-"]])
    assert 'data-name="a &quot;b&quot;">0.978 <small>[0.951, 0.991]</small></td>' in text
    assert "<td>pgd</td>" in text
    assert "A dash: there was nothing to count." in text
    assert "A dash" not in table(["attack", "n"], [["pgd", "3"]])


def test_names_are_ordered_by_their_numbers() -> None:
    """As a reader counts, not as a computer spells."""
    names = ["pgd-linf-10", "pgd-linf-2.55", "fgsm", "pgd-linf-2", "10", "9"]
    assert in_order(names) == ["9", "10", "fgsm", "pgd-linf-2", "pgd-linf-2.55", "pgd-linf-10"]
