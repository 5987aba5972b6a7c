"""The status page: one HTML document without script or anything from elsewhere."""

import html
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from reluguard.service.captures.counts import CaptureStatus
from reluguard.service.captures.drift import Drift
from reluguard.service.room import Room
from reluguard.service.watching.watch import WatchStatus
from reluguard.service.web.snapshot import (
    ChallengerStatus,
    ChangeStatus,
    GuardStatus,
    HourStatus,
    ModelStatus,
    ServerStatus,
)

__all__ = ["document_of", "page", "whats_wrong"]

_LAYERS = 3  # shown: those that moved furthest
_SHORT = 16
_DAY_S = 86_400
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5a6474; --line: #dde2ea; --card: #fff;
  --page: #f4f6f9; --clean: #2f6fb5; --flagged: #c2410c; --mixed: #b08a2e; --ok: #17703a;
  --bad: #b42318; --wait: #8a6100 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #9ba6b6; --line: #333b48;
  --card: #1b2029; --page: #12161c; --clean: #6ba6e8; --flagged: #f08a4b; --mixed: #d8b45c;
  --ok: #5cc98a; --bad: #ff8a80; --wait: #e0b040 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem;
  padding: 1.5rem 1rem 3rem; color: var(--ink); background: var(--page) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.25rem; margin: 2rem 0 .75rem }
h3 { font-size: .95rem; margin: 0 0 .5rem; color: var(--soft); font-weight: 600 }
header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: baseline }
header p { margin: 0; color: var(--soft) }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; overflow-x: auto }
.wide { grid-column: 1 / -1 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-top: 1px solid var(--line);
  vertical-align: top; font-weight: 400 } tr > th:first-child { white-space: nowrap }
tr:first-child > * { border-top: 0 } th { color: var(--soft) } .number { text-align: right }
code { font: .85em ui-monospace, monospace }
.pill { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem;
  font-weight: 600; white-space: nowrap }
.ok { color: var(--ok) } .bad { color: var(--bad) } .wait { color: var(--wait) }
.soft { color: var(--soft) }
.wrong { list-style: none; margin: 1rem 0 0; padding: .6rem 1rem; border: 1px solid var(--bad);
  border-radius: .6rem; background: var(--card); color: var(--bad); font-weight: 600 }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 1.75rem; margin: 0 0 .75rem }
.figures div { line-height: 1.2 } .figures b { display: block; font-size: 1.5rem }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif }
.clean { fill: var(--clean) } .flagged { fill: var(--flagged) } .mixed { fill: var(--mixed) }
.axis { stroke: var(--line) } .limit { stroke: var(--ink); stroke-dasharray: 3 3 }
.legend { white-space: nowrap; margin-right: .4rem }
a { color: var(--clean) }
@media (max-width: 36rem) {
  tr > th:first-child { white-space: normal }
  .stack, .stack tbody, .stack tr { display: block } .stack tr:first-child { display: none }
  .stack tr { border-top: 1px solid var(--line); padding: .4rem 0 }
  .stack tr:nth-child(2) { border-top: 0 }
  .stack td { display: grid; grid-template-columns: 4rem minmax(0, 1fr); border: 0; padding: 0;
    text-align: left; overflow-wrap: anywhere }
  .stack td::before { content: attr(data-name); color: var(--soft) } }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em }
.key.clean { background: var(--clean) } .key.flagged { background: var(--flagged) }
.key.mixed { background: var(--mixed) }
"""
_ACTIONS = {
    "promote": "promoted",
    "rollback": "rolled back to",
    "shadow": "put in shadow",
    "clear": "taken out of shadow",
}
_ADVICE = {
    "wait": ("wait", "too few to tell"),
    "none": ("ok", "as calibrated"),
    "recalibrate": ("bad", "clean inputs moved: recalibrate"),
    "retrain": ("bad", "something new is above the threshold: label and retrain"),
}
_text = html.escape


def page(status: ServerStatus) -> str:
    """Return the status page."""
    mood = "ok" if status.state == "serving" else "bad"
    wrong = "".join(f"<li>{_text(sentence)}" for sentence in whats_wrong(status))
    head = (
        f"<span class='pill {mood}' id=state>{_text(status.state)}</span>"
        f"<p>version {_text(status.version)}, at {_text(_moment(status.when))} UTC</p>"
        "<p><a href=/flagged>last flagged</a> <a href=/metrics>metrics</a>"
        " <a href=/status.json>JSON</a></p>"
    )
    body = [
        f"<ul class=wrong>{wrong}</ul>" if wrong else "",
        *map(_section, status.models),
        "" if status.watch is None else _watch(status.watch),
        "" if status.room is None else _room(status.room),
    ]
    return document_of(status.state, head, "\n".join(body))


def document_of(title: str, head: str, body: str, *, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        head: markup beside the product's name.
        body: markup below.
        style: rules beside those of every page.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><meta http-equiv=refresh content=10>",
        f"<title>reluguard: {_text(title)}</title><style>{_STYLE}{style}</style>",
        f"<header><h1>reluguard</h1>{head}</header>",
        body,
        "</html>",
    ]
    return "\n".join(parts)


def whats_wrong(status: ServerStatus) -> list[str]:
    """Return what an operator should look at, the worst first, a sentence each."""
    found = [] if status.state == "serving" else [f"The server is {status.state}."]
    if status.watch is not None and status.watch.suspects:
        worst = status.watch.suspects[0]
        found.append(
            f"{worst.caller} asks many near-equal questions, {worst.near:,.0f} of late,"
            " as an attack does that only asks."
        )
    for model in status.models:
        hour, guard = model.hour, model.guard
        if not model.is_ready:
            found.append(f"{model.name} is not served: {model.state}.")
        expected = 0.0 if guard is None else guard.target_fpr
        scored = hour.images - hour.unscored
        # three standard deviations above what the guard was calibrated for, and twice as much
        most = expected * scored + 3 * math.sqrt(expected * scored)
        if guard is not None and hour.adversarial > max(2 * expected * scored, most, 3):
            found.append(
                f"{model.name} flags {_share(hour.adversarial, scored)} of the last hour's images,"
                f" of clean ones it would flag {expected:.2%}."
            )
        if hour.unscored:
            found.append(f"{model.name} could not score {hour.unscored:,} images.")
        if model.challenger_refused:
            found.append(f"{model.name} serves without its challenger, which was refused.")
        if model.drift is not None and model.drift.advice in {"recalibrate", "retrain"}:
            found.append(f"{model.name}: traffic has left calibration, {model.drift.advice}.")
    return found


def _watch(watch: WatchStatus) -> str:
    mib = 2**20
    does = "counts and refuses" if watch.mode == "refuse" else "counts"
    rows = {
        "Does": f"{does} near-equal questions of a caller",
        "Suspects": f"{watch.under_suspicion:,} of {watch.callers:,} callers remembered",
        "Raised at": f"{watch.near:,} questions, that halve in {watch.half_life_s:,.0f} s",
        "Memory": f"{watch.max_bytes / mib:,.1f} MiB at most, no images",
    }
    cards = [_card("The watch", f"<table>{_rows(rows)}</table>")]
    if watch.suspects:
        head = "<tr><th>Caller<th>Near-equal<th>Asked<th>For"
        body = "".join(
            f"<tr><td data-name=Caller>{_text(one.caller)}<td data-name=Near>{one.near:,.0f}"
            f"<td data-name=Asked>{one.asked:,}<td data-name=For>{one.for_s / 60:,.0f} min"
            for one in watch.suspects
        )
        table = f"<table class=stack>{head}{body}</table>"
        cards.append(_card("Callers under suspicion", table, wide=True))
    return f"<section><h2>Question streams</h2><div class=cards>{''.join(cards)}</div></section>"


def _room(room: Room) -> str:
    mib = 2**20
    rows = {
        "Memory, beyond that of an idle server": f"{room.memory_bytes / mib:,.0f} MiB at most",
        "Largest request": f"{room.max_message_bytes / mib:,.1f} MiB",
        "Bytes of requests at once": f"{room.max_bytes_in_flight / mib:,.0f} MiB",
        "Calls at once": f"{room.max_in_flight:,}",
        "Connections": f"{room.max_connections:,}, of {room.max_streams:,} calls",
        "InspectStream calls": f"{room.max_open_streams:,}",
    }
    card = _card("What callers may use", f"<table>{_rows(rows)}</table>")
    return f"<section><h2>Limits</h2><div class=cards>{card}</div></section>"


def _section(model: ModelStatus) -> str:
    mood = "ok" if model.is_ready else "bad"
    title = f"{_text(model.name)} <span class='pill {mood}'>{_text(model.state)}</span>"
    cards = [
        _guard(model),
        _hour(model.hour),
        _scores("Scores of the last hour", model.hour.histogram, model.guard),
        *_challenger(model),
        *([] if model.captured is None else [_captured(model.captured)]),
        *([] if model.drift is None else [_drift(model.drift)]),
        *([] if not model.changes else [_changes(model.changes)]),
    ]
    return f"<section><h2>{title}</h2><div class=cards>{''.join(cards)}</div></section>"


def _card(title: str, body: str, *, wide: bool = False) -> str:
    return f"<div class='card{' wide' if wide else ''}'><h3>{title}</h3>{body}</div>"


def _rows(rows: dict[str, str]) -> str:
    return "".join(f"<tr><th>{name}<td>{value}" for name, value in rows.items())


def _guard(model: ModelStatus) -> str:
    guard = model.guard
    if guard is None:
        return _card("Guard", "<p class=bad>none is live")
    rows = _facts(guard) | {"Policy": _text(model.policy)}
    if guard.second_look:
        count = f"{model.hour.looked_again:,} images since start"
        rows["Second look"] = f"{_text(guard.second_look)}; {count}"
    return _card("Guard", f"<table>{_rows(rows)}</table>")


def _facts(guard: GuardStatus) -> dict[str, str]:
    return {
        "Digest": f"<code>{_text(guard.digest[:_SHORT])}</code>",
        "Fitted": f"{_text(_moment(guard.created_at))}{_age(guard.created_at)}",
        "Flags": _text(guard.flags),
        "Stands for": f"{guard.target_fpr:.2%} false positives{', of each class' * guard.by_class}",
    }


def _moment(stamp: str) -> str:
    return stamp[:19].replace("T", " ")


def _age(stamp: str) -> str:
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return ""
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    days = (datetime.now(UTC) - then).total_seconds() / _DAY_S
    return f" <span class=soft>({max(days, 0):.0f} days ago)</span>"


def _figures(values: dict[str, str]) -> str:
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in values.items())
    return f"<div class=figures>{cells}</div>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _hour(hour: HourStatus) -> str:
    clean = [images - flagged for images, flagged in hour.minutes]
    flagged = [flagged for _, flagged in hour.minutes]
    figures = {
        "images": f"{hour.images:,}",
        f"adversarial ({hour.adversarial:,})": _share(hour.adversarial, hour.images),
        "unscored": f"{hour.unscored:,}",
    }
    chart = _columns(
        [("clean", clean), ("flagged", flagged)],
        marks={0: "60 min ago", 59: "now"},
        label="Images per minute over the last hour, flagged ones on top",
    )
    return _card("Last hour", _figures(figures) + chart)


def _mixed(guard: GuardStatus | None) -> str:
    """Return what decides of scores that may be flagged or not."""
    if guard is None or guard.lowest == guard.highest:
        return "around the threshold"
    if math.isinf(guard.highest):
        return "a second look decides"
    return "by the class answered"


def _scores(title: str, histogram: Sequence[tuple[float, int]], guard: GuardStatus | None) -> str:
    bounds, counts = [bound for bound, _ in histogram], [count for _, count in histogram]
    lows = [-math.inf, *bounds[:-1]]
    least, most = (math.inf, math.inf) if guard is None else (guard.lowest, guard.highest)
    sides = [
        "clean" if high <= least else "flagged" if low >= most else "mixed"
        for low, high in zip(lows, bounds, strict=True)
    ]
    parts = [
        (side, [count if side == own else 0 for count, own in zip(counts, sides, strict=True)])
        for side in ("clean", "mixed", "flagged")
    ]
    marks = {i: f"{bound:g}" for i, bound in enumerate(bounds) if i % 2 == 0 and bound < math.inf}
    chart = _columns(parts, marks=marks, label=f"{title}: images by upper bound of the score")
    key = "".join(
        f"<span class=legend><span class='key {side}'></span>{words}</span> "
        for side, words in (
            ("clean", "not flagged"),
            ("mixed", _mixed(guard)),
            ("flagged", "flagged"),
        )
    )
    return _card(title, f"{chart}<p class=soft style='margin:.5rem 0 0'>{key}</p>")


def _columns(
    parts: Sequence[tuple[str, Sequence[int]]], *, marks: dict[int, str], label: str
) -> str:
    """Draw stacked columns: (class, values) from bottom to top, `marks` below some of them."""
    width, height, base = 340.0, 150.0, 132.0
    columns = len(parts[0][1])
    totals = [sum(values[i] for _, values in parts) for i in range(columns)]
    most, step = max([1, *totals]), width / columns
    shapes = []
    for i in range(columns):
        top = base
        for kind, values in parts:
            tall = (base - 14) * values[i] / most
            if values[i]:
                tall = max(tall, 1.0)  # one image among thousands still shows
                top -= tall
                shapes.append(
                    f"<rect class={kind} x='{i * step + 1:.1f}' y='{top:.1f}'"
                    f" width='{step - 2:.1f}' height='{tall:.1f}'><title>{values[i]:,}</title>"
                    "</rect>"
                )
    ticks = (
        f"<text x='{min(max((i + 0.5) * step, 3 * len(word)), width - 3 * len(word)):.1f}' y='146'"
        f" text-anchor=middle>{_text(word)}</text>"
        for i, word in marks.items()
    )
    return (
        f"<svg viewBox='0 0 {width:.0f} {height:.0f}' role=img aria-label='{_text(label)}'>"
        f"<line class=axis x1=0 x2={width:.0f} y1={base} y2={base} />"
        f"<text x=0 y=10>{max([0, *totals]):,} at most</text>"
        f"{''.join(shapes)}{''.join(ticks)}</svg>"
    )


def _challenger(model: ModelStatus) -> Iterator[str]:
    if model.challenger_refused:
        words = "refused: the guard serves without one, the server's log says why"
        yield _card("Challenger in shadow", f"<p class=bad>{words}")
    if model.challenger is not None:
        yield _shadow(model.challenger)
        yield _scores("Challenger's scores", model.challenger.histogram, model.challenger.guard)


def _shadow(challenger: ChallengerStatus) -> str:
    found = challenger.agreement
    figures = {
        "images": f"{found.images:,}",
        f"disagreements ({found.disagreements:,})": _share(found.disagreements, found.scored),
    }
    table = (
        "<table><tr><th><th class=number>champion flags<th class=number>champion passes"
        f"<tr><th>challenger flags<td class=number>{found.both:,}"
        f"<td class=number>{found.challenger_only:,}"
        f"<tr><th>challenger passes<td class=number>{found.champion_only:,}"
        f"<td class=number>{found.neither:,}</table>"
    )
    facts = _rows(_facts(challenger.guard) | {"Since": f"{_text(_moment(challenger.since))} UTC"})
    body = f"{_figures(figures)}{table}<table style='margin-top:.75rem'>{facts}</table>"
    return _card("Challenger in shadow", body)


def _captured(captured: CaptureStatus) -> str:
    waiting = sum(captured.waiting.values())
    figures = {"captured": f"{captured.images:,}", "wait for labels": f"{waiting:,}"}
    strata = {"above": "above the threshold", "band": "just below", "uniform": "sample of the rest"}
    rows = {
        f"Waiting, {strata.get(name, _text(name))}": f"{count:,}"
        for name, count in captured.waiting.items()
    }
    rows |= {f"Labelled {_text(name)}": f"{count:,}" for name, count in captured.labels.items()}
    return _card("Captured", f"{_figures(figures)}<table>{_rows(rows)}</table>")


def _drift(drift: Drift) -> str:
    mood, words = _ADVICE[drift.advice]
    rows = {
        _text(name).replace("_", " "): f"{value:.3f} <span class=soft>of"
        f" {drift.sizes.get(name, drift.samples):,.0f} images</span>"
        for name, value in drift.statistics.items()
    }
    if drift.suspect:
        rows |= {"unlike calibration": _text(drift.suspect)}
    furthest = sorted(drift.layers, key=lambda name: -drift.layers[name])[:_LAYERS]
    rows |= {f"layer <code>{_text(name)}</code>": f"{drift.layers[name]:.3f}" for name in furthest}
    return _card(
        "Drift",
        f"<p class={mood} style='margin:0 0 .5rem'>{words} <span class=soft>(as much as"
        f" {drift.samples:,.0f} images say)</span><table>{_rows(rows)}</table>",
    )


def _changes(changes: Sequence[ChangeStatus]) -> str:
    names = ("No.", "When", "What", "Who", "Why", "Gate")
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td data-name='{name}'{' class=number' if name == 'No.' else ''}><span>{cell}</span>"
            for name, cell in zip(names, _change(change), strict=True)
        )
        for change in changes
    )
    head = "".join(f"<th{' class=number' if name == 'No.' else ''}>{name}" for name in names)
    return _card("Last changes", f"<table class=stack><tr>{head}{rows}</table>", wide=True)


def _change(change: ChangeStatus) -> tuple[str, ...]:
    action = _ACTIONS.get(change.action, _text(change.action))
    return (
        str(change.number),
        _text(_moment(change.when)),
        f"{action} <code>{_text(change.guard[:_SHORT])}</code>",
        _text(change.who),
        _text(change.why),
        _gate(change),
    )


def _gate(change: ChangeStatus) -> str:
    forced = " <span class='pill wait'>forced</span>" if change.forced else ""
    if change.passed is None:
        return f"<span class=soft>not judged</span>{forced}"
    if change.passed:
        return f"<span class=ok>passed</span>{forced}"
    return f"<span class=bad>refused: {_text('; '.join(change.reasons))}</span>{forced}"
