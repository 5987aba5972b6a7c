"""One self-contained HTML page: no script, no font, no address that is fetched."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Section", "bullet_list", "figure", "page", "paragraph", "table", "verdict"]

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
.soft{overflow-wrap:anywhere}
a{color:var(--accent)}nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.2rem 0 0}
figure{margin:1.4rem 0}figure svg{display:block;width:100%;height:auto}
figcaption{font-size:.9rem;max-width:50rem;margin-top:.4rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin-top:1.4rem;
font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;line-height:1.3}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.text,th.text{text-align:left}td small{white-space:nowrap;display:inline-block}
td:first-child{overflow-wrap:anywhere;min-width:6.6em}
.many{font-size:.78rem}.many th,.many td{padding:.3rem .2rem}.most th{overflow-wrap:anywhere;
min-width:3.6em}
.many th:first-child,.many td:first-child{min-width:6em;padding-left:0}
td.yes{color:var(--good);font-weight:600}
td.no{color:var(--bad);font-weight:600}td.open{color:var(--open);font-weight:600}
.lead{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:.4rem 1.4rem;
margin-top:1.2rem}
.verdict{font-size:1.15rem;line-height:1.5;font-weight:600}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent)}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.pictures{display:flex;flex-wrap:wrap;gap:.5rem 2rem}
.pictures figure{margin:.8rem 0}.pictures figure>div{display:flex;gap:.4rem}
.pictures figure>div>div{width:9rem}.pictures img{width:100%;image-rendering:pixelated;
border-radius:4px;display:block}.pictures small{display:block;line-height:1.3;margin-top:.2rem}
.pictures figcaption{max-width:28rem}
.chapters{list-style:none;padding:0}.chapters a{font-weight:600}
.chapters li{border-top:1px solid var(--rule);padding:.7rem 0}
@media screen and (max-width:44rem){
main{padding:1.5rem 1rem 3rem}h1{font-size:1.6rem}.lead{padding:.2rem 1rem}
thead{display:none}table,tbody,tr,td{display:block}
tr{border-bottom:1px solid var(--rule);padding:.5rem 0}
td,td.text{border:0;padding:.1rem 0;text-align:right;overflow:hidden}
td:first-child{font-weight:600;text-align:left}
td[data-name]::before{content:attr(data-name);float:left;max-width:60%;color:var(--soft);
text-align:left;font-weight:400}figure{overflow-x:auto}figure svg{min-width:32rem}
figure>svg+figcaption::after{content:" (The picture is wider than the screen: swipe it.)"}

.pictures figure{overflow:visible;width:100%}.pictures figure>div>div{width:auto;flex:1}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--rule:#bbb;--card:#fff;--paper:#fff;
--accent:#000;--good:#0f7a5a;--bad:#b3411a;--open:#8a6100}
body{font-size:10pt}main{max-width:none;padding:0}nav{display:none}
h2{break-after:avoid;margin-top:1.5rem}h3{break-after:avoid}
tr,figure,.lead{break-inside:avoid}table+p{break-before:avoid}thead{display:table-header-group}
table{font-size:8.5pt}.many{font-size:7.5pt}.pictures{display:block}summary{break-after:avoid}
th,td{padding:.2rem .35rem}a{text-decoration:none}
details::details-content{content-visibility:visible;display:block;height:auto}
details summary{list-style:none}@page{margin:15mm}}
"""

_CODE = re.compile(r"`([^`]+)`")
# a figure, its interval and what that says, which may stand below one another
_INTERVAL = re.compile(r"^(\S+) (\[[^\]]+\])(?: (\w+))?$")
_MANY, _MOST = 8, 11  # columns from which a table is set smaller, and its heads may break

_VERDICTS = {
    "yes": "yes",
    "no": "no",
    "unclear": "open",
    "not measured": "open",
    "holds": "yes",
    "fails": "no",
    "can't be told here": "open",
    "met": "yes",
    "met, within error": "yes",
    "short, within error": "open",
    "short": "no",
    "passed": "yes",
    "refused": "no",
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

    @property
    def opening(self) -> str:
        """Its first paragraph, HTML; all of it where there is none."""
        first, end, _ = self.body.partition("</p>")
        return first + end


def page(
    title: str,
    subtitle: str,
    lead: str,
    sections: Sequence[Section],
    *,
    others: Mapping[str, str] | None = None,
) -> str:
    """Return the whole page.

    Args:
        title: plain text.
        subtitle: plain text under it.
        lead: HTML of the box on top; none where it is empty.
        sections: in order; one that is titled as the page needs no heading of its own.
        others: pages that belong to it: their names by where they are, relative to this one.
    """
    links = "".join(
        f'<a href="{escape(place)}">{escape(name)}</a>' for place, name in (others or {}).items()
    )
    headed = [s for s in sections if s.title != title]
    links += "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in headed)
    chapters = "".join(
        (f'<h2 id="{s.anchor}">{escape(s.title)}</h2>' if s in headed else "") + s.body
        for s in sections
    )
    box = f'<div class="lead">{lead}</div>' if lead else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p><nav>{links}</nav>'
        f"{box}{chapters}</main></body></html>"
    )


def verdict(sentences: Sequence[str]) -> str:
    """Return what a page comes to, plain sentences, as its first and largest paragraph."""
    return f'<p class="verdict">{escape(" ".join(sentences))}</p>'


def paragraph(text: str) -> str:
    """Return a paragraph of plain text; what stands between backticks is set as code."""
    words = _CODE.sub(r"<code>\1</code>", escape(text))
    return f"<p>{words}</p>"


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
    lines = ["".join(_cell("th", i, text, text_columns) for i, text in enumerate(head))]
    lines += [
        "".join(_cell("td", i, text, text_columns, head[i]) for i, text in enumerate(row))
        for row in rows
    ]
    first, *others = (f"<tr>{line}</tr>" for line in lines)
    kind = "many most" if len(head) >= _MOST else "many" if len(head) >= _MANY else ""
    kind = f' class="{kind}"' if kind else ""
    body = f"<table{kind}><thead>{first}</thead><tbody>{''.join(others)}</tbody></table>"
    if any(text == "-" for row in rows for text in row):
        body += "<p><small>A dash: there was nothing to count.</small></p>"
    if folded is None:
        return body
    return f"<details><summary>{escape(folded)}</summary>{body}</details>"


def _stacked(found: re.Match[str]) -> str:
    value, *below = (part for part in found.groups() if part)
    return " ".join([value, *(f"<small>{part}</small>" for part in below)])


def _cell(tag: str, column: int, text: str, text_columns: Sequence[int], head: str = "") -> str:
    """Return a cell; on a narrow screen, where rows become lists, it says what it is itself."""
    kind = _VERDICTS.get(text, "text" if column in text_columns else "")
    name = f' class="{kind}"' if kind and column else ""
    named = f' data-name="{escape(head)}"' if head and column else ""
    shown = _INTERVAL.sub(_stacked, escape(text))
    return f"<{tag}{name}{named}>{shown}</{tag}>"
