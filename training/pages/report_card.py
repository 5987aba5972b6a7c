"""The report card as one self-contained HTML page, plots inline as SVG."""

from collections.abc import Mapping

from reluguard.detector.artifact import Manifest
from reluguard.detector.metrics import GateResult
from reluguard.training.evaluation.conclusion import by_fit, conclude
from reluguard.training.evaluation.report_card import AttackFigures, ReportCard
from reluguard.training.pages.evaluation import answer_table, precision_table, red_team_table
from reluguard.training.pages.page import (
    Section,
    bullet_list,
    figure,
    page,
    paragraph,
    table,
    verdict,
)
from reluguard.training.pages.plots import AMBER, BLUE, canvas, svg
from reluguard.training.pages.two_looks import looks_section
from reluguard.training.pages.words import answered_right, few_note, in_order, number, promise_note
from reluguard.training.provenance import provenance_of

__all__ = ["report_page"]


def report_page(card: ReportCard, manifest: Manifest) -> str:
    """Return the page for a report card."""
    fpr = f"{manifest.fpr:g}"
    clean, summary = card.clean, card.summary
    found = (
        f" AUROC over {summary.attacks} attacks: mean {number(summary.mean_auroc)}, worst "
        f"{number(summary.worst_auroc)}."
        if summary.mean_auroc is not None
        else ""
    )
    harmless = {slug: one.flagged for slug, one in card.benign.items()}
    come_to = conclude(
        card.attacks,
        clean.false_positive_rate,
        harmless,
        fpr,
        card.red_team,
        by_fit(card.attacks),
    )
    lead = verdict(come_to.sentences)
    lead += paragraph(
        f"Clean accuracy {clean.accuracy}; clean images flagged at the {fpr} threshold: "
        f"{clean.false_positive_rate[fpr]}.{found}"
    ) + paragraph(
        f"{len(manifest.taps)} taps, {manifest.calibration_images} calibration images. Every "
        "figure is on source images that no step of fitting saw; attacks are of the kinds that "
        "were fitted on, and count where they succeeded after rounding to whole pixels. Attacks "
        "happen on the pixels after resize and crop, just before they become the model's input, "
        "and so do harmless changes. Brackets are 95 % intervals. `reluguard evaluate` judges "
        "unseen attacks and the baselines too."
    )
    known = [*(card.gates.lines if card.gates else ()), *card.words]
    if note := promise_note(card.promises, manifest.calibration_images):
        known.append(note)
    sections = [
        *([Section(title="What to know", body=bullet_list(known))] if known else []),
        Section(title="Attacks", body=_attack_plot(card, fpr) + _attack_table(card, fpr)),
        *(
            [Section(title="Attacked, then changed", body=_composed_table(card, fpr))]
            if card.composed
            else []
        ),
        Section(title="Harmless changes", body=_benign_table(card, fpr)),
        Section(title="Someone who knows the guard", body=red_team_table(card.red_team)),
    ]
    if card.looks is not None:
        sections.insert(
            len(known) > 0, Section(title="Two looks", body=looks_section(card.looks, fpr))
        )
    if card.answers:
        sections.append(Section(title="By class", body=answer_table(card.answers, fpr)))
    sections.append(Section(title="Precision", body=precision_table(card.precision)))
    if card.gate is not None:
        sections.insert(0, Section(title="Retrained", body=_gate(card.gate)))
    recipe = provenance_of(manifest).recipe
    subtitle = f"model {manifest.model_sha256[:16]}, fitted {manifest.created_at}"
    subtitle += f", recipe {recipe.name}" if recipe else ""
    return page("reluguard report card", subtitle, lead, sections)


def _gate(found: GateResult) -> str:
    """Return what the gate said of a guard that was retrained, against the one before it."""
    rows = [
        [
            f"{row.what}: {row.name}" if row.name else row.what,
            row.figure,
            f"{row.champion:.3f}",
            f"{row.challenger:.3f}",
            f"{row.low:+.3f} to {row.high:+.3f}",
            str(row.images),
            "refused" if row.refused else "passed",
        ]
        for row in found.rows
    ]
    passed = (
        "passed: this guard may replace" if found.passed else "refused: this guard must not replace"
    )
    head = ["what", "figure", "before", "now", "difference", "images", "gate"]
    return (
        paragraph(f"The gate {passed} the guard {found.champion[:16]} that it was retrained from.")
        + (bullet_list(found.reasons) if found.reasons else "")
        + table(head, rows, text_columns=(0, 1, 6))
    )


def _composed_table(card: ReportCard, fpr: str) -> str:
    """Return how attacks are told whose images were changed before they came."""
    found = paragraph(
        "Attacked images are seldom sent as they are. These went through one or two harmless "
        "changes first, and count where the model still answers wrong, and would not after the "
        "change alone."
    )
    for entry in card.composed.values():
        mean, worst = number(entry.summary.mean_auroc), number(entry.summary.worst_auroc)
        found += paragraph(f"AUROC: mean {mean}, worst {worst}.")
        found += _figures_table(entry.attacks, fpr)
    return found


def _attack_table(card: ReportCard, fpr: str) -> str:
    return _figures_table(card.attacks, fpr)


def _figures_table(attacks: Mapping[str, AttackFigures], fpr: str) -> str:
    rows = []
    for slug in in_order(attacks):
        entry = attacks[slug]
        figures = ["-", "-", "-"]
        if entry.auroc is not None:
            alone = number(entry.confidence_only_auroc)
            figures = [str(entry.auroc), str(entry.detected[fpr]), alone]
        rows.append([slug, f"{entry.succeeded} / {entry.tried}", *figures])
    head = ["attack", "succeeded", "AUROC", f"detected at FPR {fpr}", "AUROC of confidence alone"]
    note = few_note(attacks)
    return table(head, rows) + (paragraph(note) if note else "")


def _benign_table(card: ReportCard, fpr: str) -> str:
    rows = [
        [
            slug,
            str(card.benign[slug].images),
            str(card.benign[slug].flagged[fpr]),
            answered_right(card.benign[slug].answered_right, fpr),
        ]
        for slug in in_order(card.benign)
    ]
    wrong = card.clean.misclassified_flagged
    if wrong:
        rows.append(["clean, misclassified", str(wrong[fpr].n), str(wrong[fpr]), "-"])
    head = ["change", "images", f"flagged at the {fpr} threshold", "where answered right"]
    return table(head, rows)


def _attack_plot(card: ReportCard, fpr: str) -> str:
    """AUROC and detection per attack with intervals."""
    shown = {
        slug: (area, card.attacks[slug].detected[fpr])
        for slug in in_order(card.attacks)
        if (area := card.attacks[slug].auroc) is not None
    }
    if not shown:
        return paragraph("No attack succeeded.")
    figures = (
        ("AUROC", "o", BLUE, [area for area, _ in shown.values()]),
        (
            f"detected at {fpr}",
            "s",
            AMBER,
            [rate for _, rate in shown.values()],
        ),
    )
    with canvas(8, 1.1 + 0.32 * len(shown)) as (drawing, axes):
        plot = axes[0][0]
        for offset, (label, marker, color, values) in enumerate(figures):
            x = [value.value for value in values]
            errors = [
                [max(0.0, v.value - v.low) for v in values],
                [max(0.0, v.high - v.value) for v in values],
            ]
            y = [row + 0.15 - 0.3 * offset for row in range(len(values))]
            plot.errorbar(x, y, xerr=errors, fmt=marker, ms=5, color=color, label=label, capsize=2)
        plot.set_yticks(range(len(shown)), list(shown))
        plot.invert_yaxis()
        plot.grid(visible=False, axis="y")
        plot.set_xlim(right=1.005)
        plot.set_xlabel("share, with 95 % interval")
        drawing.legend(loc="outside upper left", ncols=2, fontsize=9)
        return figure(
            svg(drawing, "AUROC and detection of each attack"),
            "How well attacked images are told from clean ones, and what share of them is flagged.",
        )
