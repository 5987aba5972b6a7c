"""One self-contained HTML page: no script, no font, no address that is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Section", "bullet_list", "figure", "page", "paragraph", "table"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--rule:#d0d7de;--card:#f6f8fa;
--paper:#fff;--accent:#1f6fc0;--good:#0f7a5a;--bad:#b3411a;--open:#8a6100}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4af;--rule:#3a424c;--card:#1b2027;
--paper:#12161b;--accent:#6cb0f5;--good:#3fbf95;--bad:#f0875c;--open:#e0b04c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:64rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.35rem;margin:3rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem}
p,li{max-width:46rem}.soft,figcaption,small{color:var(--soft)}
a{color:var(--accent)}nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.2rem 0 0}
figure{margin:1.4rem 0}figure svg{display:block;width:100%;height:auto}
figcaption{font-size:.9rem;max-width:50rem;margin-top:.4rem}
.wrap{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;
font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}
td{white-space:nowrap}td.text,td:first-child{white-space:normal}
td.text,th.text{text-align:left}.wrap+.wrap{margin-top:1.4rem}td.yes{color:var(--good);font-weight:600}
td.no{color:var(--bad);font-weight:600}td.open{color:var(--open);font-weight:600}
.lead{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:.4rem 1.4rem}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent)}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
"""

_VERDICTS = {
    "yes": "yes",
    "no": "no",
    "unclear": "open",
    "not measured": "open",
    "met": "yes",
    "met, within error": "yes",
    "short, within error": "open",
    "short": "no",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter: its heading and the HTML under it."""

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """What the table of contents points at."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def page(title: str, subtitle: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: plain text.
        subtitle: plain text under it.
        lead: HTML of the box on top.
        sections: in order.
    """
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    chapters = "".join(f'<h2 id="{s.anchor}">{escape(s.title)}</h2>{s.body}' for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p><nav>{links}</nav>'
        f'<div class="lead">{lead}</div>{chapters}</main></body></html>'
    )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullet_list(items: Sequence[str]) -> str:
    """Return a list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def figure(drawing: str, caption: str) -> str:
    """Return a drawing (SVG) with its caption (plain text)."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: Sequence[int] = (0,),
    folded: str | None = None,
) -> str:
    """Return a table of plain texts.

    Args:
        head: of the columns.
        rows: of cells.
        text_columns: which columns hold words and go to the left.
        folded: hides the table behind this line until it is clicked.
    """

    def cell(tag: str, column: int, text: str) -> str:
        kind = _VERDICTS.get(text, "text" if column in text_columns else "")
        name = f' class="{kind}"' if kind and column else ""
        return f"<{tag}{name}>{escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, text) for i, text in enumerate(head)) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(r)) + "</tr>" for r in rows
    ]
    body = f'<div class="wrap"><table>{"".join(lines)}</table></div>'
    if folded is None:
        return body
    return f"<details><summary>{escape(folded)}</summary>{body}</details>"
