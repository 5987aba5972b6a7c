"""The first look and both looks side by side: tables of the report card and the evaluation."""

from collections.abc import Mapping

from reluguard.training.evaluation.two_looks import LookFigures, LookSummary, TwoLooks
from reluguard.training.pages.page import paragraph, table
from reluguard.training.pages.words import in_order, number

__all__ = ["look_lines", "looks_section"]

HEADS = {
    "first": "first look",
    "suspicious": "both looks, where suspicious",
    "always": "both looks, always",
}


def looks_section(found: TwoLooks, fpr: str) -> str:
    """Return the tables of both looks as HTML."""
    lead = paragraph(
        f"Second look: {found.second}. Of clean images {found.looked_again} are suspicious and "
        "looked at again; the two looks are calibrated as one, so that clean images are flagged as "
        "rarely as with one. Someone who knows the guard stays below the bound: against them only "
        "`--looks always` looks again."
    )
    rates = [rate for rate in ("0.01", fpr) if rate in found.clean["first"].flagged]
    rates = list(dict.fromkeys(rates))
    rows = [
        *_summary_rows("", found.summary, rates),
        *_summary_rows(", then changed", found.composed, rates),
    ]
    head = ["look", "attacks", "mean AUROC", "worst AUROC"]
    head += [f"detected at {rate}, mean" for rate in rates]
    return lead + table(head, rows) + _groups(found, fpr)


def _summary_rows(
    what: str, summary: Mapping[str, LookSummary], rates: list[str]
) -> list[list[str]]:
    return [
        [
            HEADS[looks] + what,
            str(one.attacks),
            number(one.mean_auroc),
            number(one.worst_auroc),
            *(number(one.mean_detected.get(rate)) for rate in rates),
        ]
        for looks in HEADS  # JSON has them by name
        if (one := summary.get(looks)) is not None
    ]


def _groups(found: TwoLooks, fpr: str) -> str:
    def cells(one: Mapping[str, LookFigures], *, attacked: bool) -> list[str]:
        texts = []
        for looks in HEADS:
            area, flagged = one[looks].auroc, one[looks].flagged[fpr].value
            alone = f"{flagged:.3f}"
            texts.append(f"{area.value:.3f}, {alone}" if attacked and area else alone)
        return texts

    rows = [["clean", *cells(found.clean, attacked=False)]]
    rows += [[slug, *cells(found.attacks[slug], attacked=True)] for slug in in_order(found.attacks)]
    rows += [[slug, *cells(found.benign[slug], attacked=False)] for slug in in_order(found.benign)]
    note = paragraph(f"Of attacks: AUROC, and the share flagged at {fpr}; of others the share.")
    return note + table(["images", *HEADS.values()], rows)


def look_lines(found: TwoLooks | None) -> list[str]:
    """Return the same in a few lines for a terminal; none where there is one look."""
    if found is None:
        return []
    lines = [f"second look: {found.second}, at {found.looked_again} of clean images"]
    for looks, head in HEADS.items():
        one = found.summary[looks]
        detected = ", ".join(f"{value:.2f} at {rate}" for rate, value in one.mean_detected.items())
        lines.append(
            f"  {head}: AUROC mean {number(one.mean_auroc)}, worst "
            f"{number(one.worst_auroc)}; detected {detected}"
        )
    return lines
