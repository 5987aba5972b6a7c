"""The report: one page, and the same figures as plain values. L taps."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.claims.claim import HOLDS
from reluguard.training.analysis.fiedler import GRAPHS
from reluguard.training.analysis.findings import Findings, GuardView
from reluguard.training.analysis.hardening import ConsistentTraining
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.networks.seeds import SeedStudy
from reluguard.training.analysis.papers import Papers, aside_rows, claim_rows
from reluguard.training.analysis.result import Analysis, TapFigures
from reluguard.training.analysis.studies.classifiers import CLASSIFIERS, ClassifierStudy
from reluguard.training.analysis.studies.halves import KINDS
from reluguard.training.pages.analysis.consistency import consistency_chapter
from reluguard.training.pages.analysis.graphs import graphs_chapter
from reluguard.training.pages.analysis.maps import maps_chapter
from reluguard.training.pages.analysis.similarity import similarity_chapter
from reluguard.training.pages.analysis.splits import splits_chapter
from reluguard.training.pages.analysis.votes import votes_chapter
from reluguard.training.pages.page import (
    Section,
    bullet_list,
    figure,
    page,
    paragraph,
    table,
    verdict,
)
from reluguard.training.pages.plots import AMBER, BLUE, RED, Line, canvas, depth_lines, svg
from reluguard.training.statistics.intervals import class_pair_mean
from reluguard.training.statistics.metrics import auroc, rate_interval

__all__ = ["CHAPTERS", "INDEX", "report_pages", "summary"]

INDEX = "report.html"
CHAPTERS = "report"  # the folder beside it


def summary(
    about: Mapping[str, Any],
    material: Material,
    findings: Findings,
    papers: Papers,
    seeds: Sequence[SeedStudy],
    hardening: ConsistentTraining | None,
) -> Analysis:
    """Return what `analysis.json` holds, NaN as None."""
    right = int((material.clean.answers == material.labels).sum())
    normalised = findings.splits.pairs[GRAPHS.index("normalised")]
    per_tap = {
        "category_spearman": findings.similarity.category_hamming,
        "nystrom_accuracy": findings.splits.nystrom,
        "parts_accuracy": findings.splits.parts_accuracy,
        "attack_split": findings.splits.attack_split,
        "attack_split_within": findings.splits.attack_split_within,
        "vote_auroc": findings.votes.auroc[0],
        "participation_ratio": findings.maps.participation[0],
        "som_nmi": findings.maps.information[0],
        "lsim_clean_attacked": findings.graphs.near_attack,
        "cka_clean_attacked": findings.graphs.cka_attack,
        "bits_flipped": np.nanmean(findings.consistency.flips, axis=1),
    }
    taps = tuple(
        TapFigures(
            name=tap.name,
            op=tap.op,
            shape=tuple(tap.shape),
            bits=tap.bits,
            fiedler_accuracy=class_pair_mean(normalised[i], seed=material.seed),
            **{name: _plain(values[i]) for name, values in per_tap.items()},
        )
        for i, tap in enumerate(material.taps)
    )
    return Analysis(
        about=dict(about),
        accuracy=rate_interval(right, len(material.labels)),
        attacks={
            name: rate_interval(int(flags.sum()), len(flags))
            for name, flags in material.success.items()
        },
        taps=taps,
        claims=tuple(one.to_json() for one in papers.claims),
        beside=tuple(one.to_json() for one in papers.beside),
        classifiers=_classifier_values(findings.classifiers),
        seeds={one.architecture: _seed_values(one) for one in seeds} or None,
        hardening=None if hardening is None else hardening.to_json(),
        guard_auroc=_guard_auroc(findings.guard),
    )


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _classifier_values(study: ClassifierStudy) -> tuple[dict[str, Any], ...]:
    """Return shares of the test images of each kind that are called attacked."""

    def shares(called: NDArray[np.int64], tested: int) -> dict[str, float]:
        return {kind: float(n) / tested for kind, n in zip(KINDS, called, strict=True)}

    return tuple(
        {
            "attack": attack,
            "tested": tested,
            "all_taps": {
                name: shares(study.called[a, m], tested) for m, name in enumerate(CLASSIFIERS)
            },
            "per_tap": [shares(one, tested) for one in study.tap_called[a]],
        }
        for a, (attack, tested) in enumerate(zip(study.attacks, study.tested.tolist(), strict=True))
    )


def _seed_values(seeds: SeedStudy) -> dict[str, Any]:
    return {
        "networks": seeds.networks,
        "accuracy": seeds.accuracy.tolist(),
        "pairs": seeds.pairs.tolist(),
        "gbs": seeds.gbs.tolist(),
        "cka": seeds.cka.tolist(),
        "cka_averaged": seeds.cka_averaged.tolist(),
        "gbs_bits": seeds.gbs_bits.tolist(),
        "gbs_near": seeds.gbs_near.tolist(),
        "homogeneity": seeds.homogeneity.tolist(),
    }


def _guard_auroc(view: GuardView | None) -> float | None:
    if view is None or len(view.attacked_scores) == 0:
        return None
    return auroc(view.clean_scores, view.attacked_scores)


def report_pages(
    found: Analysis,
    material: Material,
    findings: Findings,
    papers: Papers,
    seeds: Sequence[SeedStudy],
    hardening: ConsistentTraining | None,
) -> dict[str, str]:
    """Return the report as HTML by where it lies: `report.html`, and a page for each chapter.

    Chapters hold pictures of every tap, megabytes of them: nobody has to load all to read one.
    """
    about = found.about
    chapters = [
        similarity_chapter(findings.similarity, material),
        splits_chapter(findings.splits, material),
        votes_chapter(findings.votes, findings.classifiers, material),
        maps_chapter(findings.maps, material),
        graphs_chapter(findings.graphs, material, findings.other, seeds),
        consistency_chapter(findings.consistency, material, hardening),
    ]
    title = f"Inside {about['model']}"
    subtitle = (
        f"{about['images']} images of {about['data']}, {about['pairwise']} of them attacked and "
        f"compared pairwise, {len(material.taps)} taps, "
        f"{sum(tap.bits for tap in material.taps):,} bits per image"
    )
    listed = "".join(
        f'<li><a href="{CHAPTERS}/{one.anchor}.html">{escape(one.title)}</a>{one.opening}</li>'
        for one in chapters
    )
    sections = [
        Section(title="Chapters", body=f'<ul class="chapters">{listed}</ul>'),
        _claims_section(papers),
        _beside_section(papers),
    ]
    if findings.guard is not None:
        sections.append(_guard_section(findings.guard, material.main))
    sections.append(_method_section(about, material))
    pages = {INDEX: page(title, subtitle, _lead(found, findings, papers), sections)}
    for one in chapters:
        others = {f"../{INDEX}": "All chapters"}
        others |= {f"{other.anchor}.html": other.title for other in chapters if other is not one}
        pages[f"{CHAPTERS}/{one.anchor}.html"] = page(
            one.title, f"{title}: {subtitle}", "", [one], others=others
        )
    return pages


def _lead(found: Analysis, findings: Findings, papers: Papers) -> str:
    holds, fails, untold = (sum(one.holds == word for one in papers.claims) for word in HOLDS)
    attacks = ", ".join(f"{name} {entry.value:.1%}" for name, entry in found.attacks.items())
    simple = findings.classifiers
    best = int(simple.hits[0].argmax())
    told = simple.hits[0, best] / simple.trials[0]
    noise = simple.called[0, best, KINDS.index("noise")] / simple.tested[0]
    split = found.taps[-1].fiedler_accuracy
    come_to = (
        "The last layer's bits alone, without a label, tell two classes apart for "
        f"{100 * split.value:.0f} % of the pictures; a simple classifier on all bits tells clean "
        f"from attacked ones for {100 * told:.0f} %, and calls {100 * noise:.0f} % of those with "
        "harmless noise as large attacked."
    )
    return verdict([come_to]) + bullet_list(
        [
            (
                f"The network answers {found.accuracy.value:.1%} of the images right. "
                f"Attacks that turn a right answer into a wrong one: {attacks}."
            ),
            (
                "Cut without labels, the last tap's bits separate two classes at "
                f"{found.taps[-1].fiedler_accuracy}."
            ),
            (
                f"The best simple classifier ({CLASSIFIERS[best]}) tells {told:.1%} of clean and "
                f"{simple.attacks[0]} images apart; no noisy images are among its negatives, and "
                f"of those it calls {noise:.1%} attacked."
            ),
            (
                f"Of {len(papers.claims)} claims of the source papers {holds} hold here, {fails} "
                f"fail and {untold} can't be told here; each says why."
            ),
        ]
    )


def _claims_section(papers: Papers) -> Section:
    head = ["claim", "the paper", "here", "ours", "verdict"]
    body = paragraph(
        "A claim holds if the whole 95 % interval lies above the claimed figure and fails if it "
        "lies at or below it. Where the interval holds both sides, or where the figure can't be "
        "had, it can't be told here."
    )
    for paper in dict.fromkeys(one.paper for one in papers.claims):
        rows = claim_rows([one for one in papers.claims if one.paper == paper])
        body += f"<h3>{escape(paper)}</h3>" + table(head, rows, text_columns=(0, 1, 2, 4))
    return Section(title="The papers' claims", body=body)


def _beside_section(papers: Papers) -> Section:
    return Section(
        title="Beside the papers",
        body=paragraph(
            "The same measurements where no paper claims anything: other attacks, other "
            "classifiers, other ways to count. Nothing here can hold or fail."
        )
        + table(["measured", "ours", "beside"], aside_rows(papers.beside), text_columns=(0, 2)),
    )


def _guard_section(view: GuardView, attack: str) -> Section:
    flagged = (view.attacked_scores > view.threshold).mean()
    false = (view.clean_scores > view.threshold).mean()
    text = (
        f"The guard reads {len(view.taps)} taps. On these images its AUROC against {attack} is "
        f"{_guard_auroc(view) or float('nan'):.3f}; at its threshold it flags {flagged:.1%} of the "
        f"attacked and {false:.1%} of the clean images. Images it was fitted to may be among them."
    )
    with canvas(10, 3.6, 1, 2) as (drawing, grid):
        axes = grid[0, 0]
        edges = np.histogram_bin_edges(
            np.concatenate([view.clean_scores, view.attacked_scores]), bins=40
        )
        for label, values, color in (
            ("clean", view.clean_scores, BLUE),
            (attack, view.attacked_scores, RED),
        ):
            axes.hist(values, edges, color=color, alpha=0.6, label=label)
        axes.axvline(view.threshold, color=AMBER, linestyle="--", label="threshold")
        axes.set_title("Score")
        axes.set_xlabel("log-odds, higher is more adversarial")
        axes.set_ylabel("images")
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=3, fontsize=9)
        lines = [
            _band(label, values, color)
            for label, values, color in (
                ("clean", view.clean_evidence, BLUE),
                (attack, view.attacked_evidence, RED),
            )
        ]
        depth_lines(grid[0, 1], lines, title="Evidence per tap it reads", unit="log-odds")
        drawn = svg(drawing, "Scores and evidence of the guard")
    return Section(
        title="The guard on these images",
        body=paragraph(text) + figure(drawn, "Evidence: mean and 10 to 90 % of images."),
    )


def _band(label: str, values: NDArray[np.float32], color: str) -> Line:
    return Line(
        label=label,
        values=values.mean(axis=0),
        low=np.quantile(values, 0.1, axis=0),
        high=np.quantile(values, 0.9, axis=0),
        color=color,
    )


def _method_section(about: Mapping[str, Any], material: Material) -> Section:
    rows = [
        [f"tap {i + 1}", tap.name, tap.op, " x ".join(map(str, tap.shape)), f"{tap.bits:,}"]
        for i, tap in enumerate(material.taps)
    ]
    notes = [
        "A bit is on where a gate's output is above zero. Bits are read from ONNX Runtime.",
        (
            "Attacks run on a differentiable twin; images are rounded to whole 8-bit pixels and "
            "success is measured on the ONNX model. Studies of attacked images use successes only "
            "where they speak of detection or consistency, and all attacked images elsewhere."
        ),
        "Noise as large: every pixel value up or down by the attack's budget, at random.",
        "Bits are graded against images of other sources wherever something is fitted.",
        "Four of the source papers were not available in full: their methods are reconstructions.",
        (
            f"Seed {about['seed']}; {about['seconds']} s; model SHA-256 "
            f"{about['model_sha256'][:16]}…, data SHA-256 {about['data_sha256'][:16]}…"
        ),
    ]
    return Section(
        title="How it was measured",
        body=bullet_list(notes)
        + table(
            ["", "tensor", "operator", "shape", "bits"],
            rows,
            text_columns=(0, 1, 2),
            folded=f"The {len(material.taps)} taps",
        ),
    )
