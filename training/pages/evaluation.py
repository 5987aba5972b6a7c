"""An evaluation as one self-contained HTML page, plots inline. N images."""

from collections.abc import Mapping

import numpy as np

from reluguard.detector.metrics import Rates, RedTeamSummary
from reluguard.training.evaluation.comparison import Group
from reluguard.training.evaluation.conclusion import conclude
from reluguard.training.evaluation.figures import Precision, rarest_last
from reluguard.training.evaluation.result import Evaluation
from reluguard.training.pages import evaluation_plots as plots
from reluguard.training.pages.page import Section, bullet_list, page, paragraph, table, verdict
from reluguard.training.pages.two_looks import looks_section
from reluguard.training.pages.words import answered_right, few_note, in_order, number, promise_note

__all__ = [
    "answer_table",
    "evaluation_page",
    "matrix_sections",
    "precision_table",
    "red_team_table",
]


GUARANTEE = (
    "The guarantee: over draws of the calibration images, at most the promised share of clean "
    "images is flagged (split conformal prediction), as long as requests are like those images. It "
    "holds on average over classes, not within each: by the class that the model answers, the rate "
    "is as follows."
)


def evaluation_page(
    card: Evaluation, groups: Mapping[str, Group], thresholds: Mapping[str, float]
) -> str:
    """Return the page.

    Args:
        card: as `evaluate` makes it.
        groups: what it was made from, for curves and examples.
        thresholds: of the guard, by false-positive rate.
    """
    about, clean = card.about, card.clean
    rate = _own_rate(card)
    mean, worst = card.summary.mean_auroc, card.summary.worst_auroc
    come_to = conclude(
        card.attacks, clean.false_positive_rate, card.benign, rate, card.red_team, card.beside
    )
    lead = verdict(come_to.sentences)
    lead += paragraph(
        f"{about.images} images that no step of fitting saw ({about.origin}). Clean images "
        f"flagged at the {rate} threshold: {clean.false_positive_rate[rate]}. "
        + (
            f"AUROC over attacks: mean {mean:.3f}, worst {number(worst)}."
            if mean is not None
            else ""
        )
    ) + paragraph(
        "Threat model of this page: " + about.threat_model + ". Attacks count where they "
        "succeeded in whole pixels from images the model answers right; they and harmless changes "
        "happen on the pixels after resize and crop. Brackets are 95 % intervals. "
        "Someone who knows the guard gets past more often: see the red team's figures."
    )
    if about.words:
        lead += bullet_list(about.words)
    sections = [
        Section(title="Threat models", body=_threat_table(card)),
        Section(title="Attacks", body=plots.roc(groups) + _attack_table(card)),
        *(
            [Section(title="Attacked, then changed", body=_composed_table(card, rate))]
            if card.composed
            else []
        ),
        Section(title="Clean images", body=_clean_table(card, rate)),
        Section(
            title="Harmless changes", body=plots.severity(card, rate) + _benign_table(card, rate)
        ),
        Section(title="Baselines", body=_baseline_table(card)),
        Section(title="Precision", body=precision_table(card.precision)),
        Section(title="Scores", body=plots.densities(card, groups)),
        Section(title="Evidence by depth", body=plots.evidence(groups)),
        Section(title="Examples", body=plots.examples(groups, thresholds, rate)),
    ]
    if card.looks is not None:
        sections.insert(1, Section(title="Two looks", body=looks_section(card.looks, rate)))
    sections = [section for section in sections if section.body]
    at = [section.title for section in sections].index("Baselines")
    sections[at:at] = matrix_sections(card)
    subtitle = f"model {about.model[:16]}, guard {about.guard[:16]}, seed {about.seed}"
    return page("reluguard evaluation", subtitle, lead, sections)


def matrix_sections(card: Evaluation) -> list[Section]:
    """Return what heads find of attacks that they were fitted without, by one look and by both."""
    of_looks = {"Seen and unseen": card.matrix, "Seen and unseen, both looks": card.matrix_both}
    return [
        Section(title=title, body=plots.matrix(matrix))
        for title, matrix in of_looks.items()
        if matrix is not None and matrix.auroc
    ]


def _threat_table(card: Evaluation) -> str:
    rows = [
        [
            threat,
            entry.knows,
            str(entry.attacks),
            f"{entry.mean_auroc:.3f}",
            f"{entry.worst_auroc:.3f}",
            entry.worst,
        ]
        for threat, entry in card.threats.items()
    ]
    head = ["threat model", "the attacker has", "attacks", "mean AUROC", "worst AUROC", "which"]
    return table(head, rows, text_columns=(0, 1, 5)) + red_team_table(card.red_team)


def red_team_table(found: RedTeamSummary | None) -> str:
    """Return what the red team published with the guard, or that it did not."""
    if found is None:
        return paragraph(
            "An attacker who knows the guard is another matter, and nothing is published about one "
            "with this guard: `reluguard redteam --publish` does it."
        )
    rates = list(next(iter(found.evaded.values()), {}))
    rows = [
        [f"{float(size):g}/255", *(str(entry[rate]) for rate in rates)]
        for size, entry in sorted(found.evaded.items(), key=lambda one: float(one[0]))
    ]
    settings = ", ".join(f"{key} {value}" for key, value in found.settings.items())
    medians = "; ".join(
        f"{norm}: " + ", ".join(f"{key} {number(value, 'g')}" for key, value in entry.items())
        for norm, entry in found.median_budget.items()
    )
    return (
        paragraph(
            f"An attacker who knows the guard, on {found.images} images ({settings}): share "
            "of images with a wrong answer that is not flagged."
        )
        + table(["Linf budget", *(f"evades at {rate}" for rate in rates)], rows)
        + (paragraph(f"Budget the median image needs, {medians}.") if medians else "")
    )


def _own_rate(card: Evaluation) -> str:
    """The most lenient rate: what tables of one column show."""
    return list(card.clean.false_positive_rate)[-1]


def _attack_table(card: Evaluation) -> str:
    rates = list(card.clean.false_positive_rate)
    rows = []
    for slug in in_order(card.attacks):
        entry = card.attacks[slug]
        row = [slug, "yes" if entry.fitted_on else "new", f"{entry.succeeded} / {entry.tried}"]
        if entry.auroc is None:
            row += ["-"] * (1 + len(rates))
        else:
            row += [str(entry.auroc), *(str(entry.detected[rate]) for rate in rates)]
        failed = entry.failed.flagged
        row += [str(failed[rates[-1]]) if failed else "-", str(entry.unnoticed[rates[-1]])]
        rows.append(row)
    head = ["attack", "fitted on", "succeeded", "AUROC", *(f"detected at {r}" for r in rates)]
    head += [f"failed ones flagged at {rates[-1]}", f"unnoticed at {rates[-1]}, of all tries"]
    note = few_note(card.attacks)
    return table(head, rows) + (paragraph(note) if note else "")


def _composed_table(card: Evaluation, rate: str) -> str:
    """Return how attacks are told whose images were changed before they came."""
    rows = [
        [
            entry.change,
            number(entry.mean_auroc),
            number(entry.worst_auroc),
            entry.worst or "-",
            str(sum(one.succeeded for one in entry.attacks.values())),
        ]
        for entry in card.composed.values()
    ]
    names = list(card.composed)
    detail = []
    for slug in card.attacks:
        row = [slug]
        for name in names:
            one = card.composed[name].attacks.get(slug)
            if one is None or one.auroc is None:
                row += ["-", "-", "-"]
            else:
                row += [str(one.succeeded), str(one.auroc), str(one.detected[rate])]
        detail.append(row)
    head = ["attack"]
    for name in names:
        head += [f"{name}: still wrong", "AUROC", f"detected at {rate}"]
    notes = [few_note(entry.attacks) for entry in card.composed.values()]
    return (
        paragraph(
            "Attacked images are seldom sent as they are. These went through a harmless change "
            "first, and count where the model still answers wrong."
        )
        + table(
            ["afterwards", "mean AUROC", "worst AUROC", "which", "images"],
            rows,
            text_columns=(0, 3),
        )
        + table(head, detail, folded="by attack")
        + "".join(paragraph(note) for note in dict.fromkeys(notes) if note)
    )


def _clean_table(card: Evaluation, rate: str) -> str:
    wrong = card.clean.misclassified_flagged
    note = promise_note(card.promises, card.about.calibration_images or 0)
    rows = [
        [threshold, str(value), str(wrong[threshold]) if wrong else "-"]
        for threshold, value in card.clean.false_positive_rate.items()
    ]
    classes = [
        [
            label,
            str(entry.false_positive_rate[rate]),
            str(entry.detected[rate]) if entry.detected else "-",
        ]
        for label, entry in ((label, card.classes[label]) for label in in_order(card.classes))
    ]
    return (
        table(["threshold for", "flagged", "of misclassified ones"], rows)
        + paragraph(GUARANTEE)
        + (paragraph(note) if note else "")
        + answer_table(card.answers, rate)
        + table(
            ["true class", f"clean flagged at {rate}", "attacks detected"],
            classes,
            folded="by true class",
        )
    )


def answer_table(answers: Mapping[str, Rates], rate: str) -> str:
    """Return what is flagged of clean images, by the class that the model answers."""
    shown = [(answer, answers[answer]) for answer in in_order(answers)]
    rows = [[answer, str(one[rate].n), str(one[rate])] for answer, one in shown if one]
    return table(["class answered", "clean images", f"flagged at {rate}"], rows)


def _benign_table(card: Evaluation, rate: str) -> str:
    rows = [
        [slug, str(card.benign[slug][rate]), answered_right(card.answered_right[slug], rate)]
        for slug in in_order(card.benign)
    ]
    return table(["harmless change", f"flagged at {rate}", "where answered right"], rows)


def _baseline_table(card: Evaluation) -> str:
    changes = list(next(iter(card.baselines.values())).composed) if card.baselines else []
    rows = []
    for name, entry in card.baselines.items():
        figures = [
            number(value)
            for value in (
                entry.mean_auroc,
                entry.worst_auroc,
                entry.mean_early,
                entry.mean_benign_flagged,
            )
        ]
        leads = (entry.lead.mean, entry.lead.worst) if entry.lead else (None, None)
        figures += ["-" if lead is None else f"{lead:+.3f}" for lead in leads]
        figures += [number(entry.composed.get(change)) for change in changes]
        rows.append([name, *figures])
    head = ["detector", "mean AUROC", "worst AUROC", "found below 1 %", "harmless flagged"]
    head += ["guard minus it: mean", "worst", *(f"then {name}" for name in changes)]
    detail = [
        [slug, *(number(entry.auroc.get(slug)) for entry in card.baselines.values())]
        for slug in in_order(card.attacks)
    ]
    left_out = paragraph("Left out: " + card.left_out) if card.left_out else ""
    return (
        paragraph(
            "Every detector on the same images, its threshold set where 5 % of these clean images "
            "are flagged. Those that need fitting are fitted on the guard's own fitting split. "
            "Differences are paired: both detectors are judged on the same draws of source images, "
            "and one is ahead only where the whole 95 % interval says so. Found below 1 % is the "
            "mean share of attacks found over rates of false alarms from 0 to 1 %."
        )
        + left_out
        + table(head, rows)
        + bullet_list([f"{name}: {one.note}" for name, one in card.baselines.items() if one.note])
        + table(["AUROC", *card.baselines], detail, folded="AUROC by attack")
    )


def precision_table(found: Mapping[str, Precision]) -> str:
    """Return what share of flagged requests are attacks, by how common attacks are."""
    if not found:
        return paragraph("No attack succeeded.")
    shares = rarest_last(found)
    rows = [
        [
            rate,
            _share(entry.mean_detected),
            *(_share(entry.precision[p]) for p in shares),
        ]
        for rate, entry in found.items()
    ]
    note = (
        "Share of flagged requests that are attacks, where one request in so many is an attack, "
        "with the detection rate averaged over the attacks above, and false alarms at the promised "
        "rate, or at the measured one where that is higher."
    )
    head = ["threshold for", "detected", *(f"1 in {1 / float(p):,.0f}" for p in shares)]
    return paragraph(note) + table(head, rows)


def _share(value: float) -> str:
    if value >= 0.001 or value == 0:
        return f"{value:.3f}"
    return np.format_float_positional(value, precision=1, fractional=False)
