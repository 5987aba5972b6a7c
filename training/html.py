"""The report card as one self-contained HTML page, plots inline as SVG."""

import html
import io
from collections.abc import Mapping
from typing import Any

from detector.artifact import Manifest

__all__ = ["report_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; background: #fff; border-radius: 6px; padding: .5rem; }
svg { width: 100%; height: auto; }
.muted { opacity: .7; }
"""


def report_page(card: Mapping[str, Any], manifest: Manifest) -> str:
    """Return the page for a report card as `report_card` made it."""
    fpr = f"{manifest.fpr:g}"
    clean = card["clean"]
    title = "reluguard report card"
    intro = (
        f"<p>Model <code>{manifest.model_sha256[:16]}</code>, fitted {manifest.created_at}, recipe "
        f"<b>{html.escape(str(manifest.provenance['recipe']['name']))}</b>, "
        f"{len(manifest.taps)} taps, {manifest.calibration_images} calibration images. Every "
        "figure is on source images that no step of fitting saw; attacks count where they "
        "succeeded after rounding to whole pixels. Brackets are 95&nbsp;% intervals.</p>"
        f"<p>Clean accuracy {_interval(clean['accuracy'])}; clean images flagged at the "
        f"{fpr} threshold: {_interval(clean['false_positive_rate'][fpr])}.</p>"
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{_STYLE}</style><h1>{title}</h1>",
        intro,
        f"<h2>Attacks</h2><figure>{_attack_plot(card, fpr)}</figure>",
        _attack_table(card, fpr),
        "<h2>Harmless changes</h2>",
        _benign_table(card, fpr),
    ]
    return "\n".join(parts)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr>"]
    for row in rows:
        lines += ["<tr>", *(f"<td>{html.escape(cell)}</td>" for cell in row), "</tr>"]
    return "".join([*lines, "</table>"])


def _attack_table(card: Mapping[str, Any], fpr: str) -> str:
    rows = [
        [
            slug,
            f"{entry['succeeded']} / {entry['tried']}",
            _interval(entry["auroc"]),
            _interval(entry["detected"][fpr]),
            f"{entry['confidence_only_auroc']:.3f}",
        ]
        if "auroc" in entry
        else [slug, f"0 / {entry['tried']}", "-", "-", "-"]
        for slug, entry in card["attacks"].items()
    ]
    head = ["attack", "succeeded", "AUROC", f"detected at FPR {fpr}", "AUROC of confidence alone"]
    return _table(head, rows)


def _benign_table(card: Mapping[str, Any], fpr: str) -> str:
    rows = [
        [slug, str(entry["images"]), _interval(entry["flagged"][fpr])]
        for slug, entry in card["benign"].items()
    ]
    flagged = card["clean"]["misclassified_flagged"]
    if flagged:
        wrong = flagged[fpr]
        rows.append(["clean, misclassified", str(wrong["n"]), _interval(wrong)])
    return _table(["change", "images", f"flagged at the {fpr} threshold"], rows)


def _attack_plot(card: Mapping[str, Any], fpr: str) -> str:
    """AUROC and detection per attack with intervals, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = {slug: entry for slug, entry in card["attacks"].items() if "auroc" in entry}
    figure = Figure(figsize=(8, 1 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    figures = (
        ("AUROC", "o", "#0072b2", [entry["auroc"] for entry in shown.values()]),
        (
            f"detected at FPR {fpr}",
            "s",
            "#d55e00",
            [entry["detected"][fpr] for entry in shown.values()],
        ),
    )
    for offset, (label, marker, color, values) in enumerate(figures):
        x = [value["value"] for value in values]
        errors = [
            [max(0.0, v["value"] - v["low"]) for v in values],
            [max(0.0, v["high"] - v["value"]) for v in values],
        ]
        y = [row + 0.15 - 0.3 * offset for row in range(len(values))]
        axes.errorbar(x, y, xerr=errors, fmt=marker, color=color, label=label, capsize=2)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlim(right=1.005)
    axes.set_xlabel("share (95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left")
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
