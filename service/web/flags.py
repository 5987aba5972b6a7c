"""The page of the last flagged images: who sent them, what was said, and what spoke for it."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime

from reluguard.service.monitoring.flagged import Flag
from reluguard.service.web.page import document_of

__all__ = ["flags_page"]

_text = html.escape
_SHORT = 12
_STYLE = """
.flag { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: .25rem 1.5rem;
  padding: .6rem 0; border-top: 1px solid var(--line) }
.flag:first-child { border-top: 0 }
.flag p { margin: 0; overflow-wrap: anywhere }
.bar { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr) 3.5rem; gap: .6rem;
  align-items: center; line-height: 1.4 }
.bar code { overflow-wrap: anywhere }
.bar i { display: block; height: .55rem; border-radius: 2px; background: var(--flagged) }
.bar b { text-align: right; font-weight: 400; font-variant-numeric: tabular-nums }
@media (max-width: 36rem) { .flag { grid-template-columns: minmax(0, 1fr) } }
"""


def flags_page(flags: Sequence[Flag]) -> str:
    """Return the page, newest first."""
    shown = "".join(map(_flag, flags))
    empty = "<p class=soft>Nothing was flagged since the server started."
    body = (
        "<section><h2>The last images that were flagged</h2>"
        "<p class=soft>Evidence is what each layer says for an attack, in log-odds; the five that"
        " say most are shown. <code>reluguard label list --request NAME</code> finds what was"
        " captured of a request.</p>"
        f"<div class=card>{shown or empty}</div></section>"
    )
    return document_of(
        f"{len(flags)} flagged", "<p><a href=/>status</a> <a href=/flagged.json>JSON</a></p>", body,
        style=_STYLE,
    )  # fmt: skip


def _flag(flag: Flag) -> str:
    moment = datetime.fromtimestamp(flag.time, UTC).isoformat(sep=" ", timespec="seconds")[:19]
    captured = ""
    if flag.capture:
        captured = f", captured as <code>{_text(flag.capture[:_SHORT])}</code>"
    withheld = " <span class='pill bad'>withheld</span>" if flag.withheld else ""
    return (
        f"<div class=flag><div><p><b>{_text(flag.model)}</b> said {flag.prediction}{withheld}"
        f"<p>score <b>{flag.score:.2f}</b>, p-value <b>{flag.p_value:.4f}</b>"
        f"<p class=soft>{moment}, from {_text(flag.caller)}"
        f"<p class=soft>request <code>{_text(flag.request)}</code>, image {flag.row}{captured}"
        f"</div><div>{_evidence(flag.evidence)}</div></div>"
    )


def _evidence(evidence: Sequence[tuple[str, float]]) -> str:
    most = max([1e-9, *(value for _, value in evidence)])
    return "".join(
        f"<div class=bar><code>{_text(layer)}</code>"
        f"<i style='width:{max(0.0, value) / most:.0%}'></i><b>{value:+.2f}</b></div>"
        for layer, value in evidence
    )
