"""What an attacker makes on guards of their own: images for each way, kept on disk. N images.

The model is known, so that its answer is wrong is certain; what the owner's guard will say is not.
So nothing rests where it just evades: within a budget the lowest score is looked for, and of
smallest changes there are several, each made against a stricter threshold than the one before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.secrecy.guards import FPR, Form, Party
from reluguard.detector.artifact import write_file
from reluguard.detector.compile.graph import OURS, Graph
from reluguard.detector.compile.guarded import LOGITS, RATES
from reluguard.detector.compile.reading import add_rates
from reluguard.detector.compile.scoring import add_features, add_judgement
from reluguard.detector.images import Images
from reluguard.detector.looks.export import defined_names, join_opsets, rename
from reluguard.detector.looks.graph import FIRST_LOGITS, FIRST_RATES, SECOND_SCORE, compile_second
from reluguard.detector.looks.second import Look, SecondLook
from reluguard.detector.looks.views import viewed
from reluguard.training.attacks import Attack, Victim, open_victim
from reluguard.training.red_team.aware_attacks import Orthogonal
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.red_team.smallest import NO_GUARD, Smallest
from reluguard.training.twin.twin import load_twin

__all__ = ["BARE", "MeanOfGuards", "Plan", "made", "names_of", "victim_of", "ways_of"]

STRICTER = (FPR, 0.3, 0.7)  # of the attacker's own clean images lie above a threshold
LOWEST = -1e6  # a score that nothing reaches
AT_ONCE = 48
BARE = "bare"
MEAN = f"{OURS}mean"


@dataclass(frozen=True, slots=True)
class Plan:
    """Whose guards an attacker attacks, all at once: the mean of their scores.

    Attributes:
        name: of the attacker.
        party: whose images the guards are fitted on.
        forms: of the guards.
    """

    name: str
    party: Party
    forms: tuple[Form, ...]


class MeanOfGuards(RelaxedGuard):
    """The mean score of several guards of one model, with gradients, beside the model's logits.

    Args:
        plan: whose guards.
        images: uint8, (M, H, W, C), clean, to measure deviations of gates on.
    """

    def __init__(self, plan: Plan, images: Images) -> None:
        self.procedure = Procedure(looks="first", bound=-np.inf, limits={}, cuts={})
        production, spec = plan.party.production, plan.party.artifact.manifest.input
        self._open(mean_graph(plan), production, spec, [MEAN], [], 0, images, None)


def mean_graph(plan: Plan) -> onnx.ModelProto:
    """Return the model with one more tensor, `MEAN` float32 (N,): the mean of all scores."""
    party, manifest = plan.party, plan.party.artifact.manifest
    production, taps = party.production, manifest.taps
    graph = Graph.over(production)
    logits = graph.logits(production)
    rates = add_rates(graph, taps)
    scores = []
    for i, form in enumerate(plan.forms):
        if not form.view:
            head = party.head(form)
            x = add_features(graph, head.features, rates, logits)
            scores.append(f"{OURS}score_of_{i}")
            graph.output(scores[-1], add_judgement(graph, head, x).score, TensorProto.FLOAT, ["N"])
    graph.output(RATES, rates.in_order(graph), TensorProto.FLOAT, ["N", len(rates.places)])
    graph.output(LOGITS, logits, TensorProto.FLOAT, ["N", None])
    proto = graph.finish()
    for i, form in enumerate(plan.forms):
        if form.view:
            scores.append(_add_view(proto, party, form, f"view_{i}/"))
    share = f"{OURS}share"
    proto.graph.initializer.append(
        numpy_helper.from_array(np.array(1 / len(scores), np.float32), share)
    )
    total = scores[0]
    for i, score in enumerate(scores[1:]):
        proto.graph.node.append(helper.make_node("Add", [total, score], [f"{OURS}sum_{i}"]))
        total = f"{OURS}sum_{i}"
    proto.graph.node.append(helper.make_node("Mul", [total, share], [MEAN]))
    return proto


def _add_view(proto: onnx.ModelProto, party: Party, form: Form, prefix: str) -> str:
    """Add the model at a view and the score of both looks; return its name."""
    manifest, production, head = party.artifact.manifest, party.production, party.head(form)
    second = SecondLook(
        look=Look(view=form.view),
        taps=manifest.taps,
        head=head,
        first_scores=head.clean_scores,
        bound=-np.inf,
        suspicious_slope=1.0,
        suspicious_intercept=0.0,
        golden_score=np.zeros(0, np.float32),
    )
    network = viewed(production, manifest.input, form.view)
    again = compile_second(network, second, manifest.taps)
    join_opsets(proto, again)
    score = f"{OURS}{prefix}score"
    names = {
        name: f"{OURS}{prefix}{name.removeprefix(OURS)}" if name.startswith(OURS) else prefix + name
        for name in defined_names(again.graph)
    }
    names |= {FIRST_RATES: RATES, FIRST_LOGITS: LOGITS, SECOND_SCORE: score}
    names[production.input.name] = production.input.name
    rename(again.graph, names)
    proto.graph.node.extend(again.graph.node)
    proto.graph.initializer.extend(again.graph.initializer)
    return score


def ways_of(
    plan: Plan | None, party: Party, clean: Images, *, budgets: Sequence[float], steps: int
) -> Mapping[str, Attack]:
    """Return the attacks of a plan by name, those on the bare model without one.

    Args:
        plan: the attacker's.
        party: whose model it is.
        clean: uint8, (M, H, W, C). The attacker's own, which thresholds are taken from.
        budgets: in Linf, in 8-bit steps.
        steps: of each attack.
    """
    views = sorted({form.view for form in plan.forms if form.view}) if plan else []
    forms = plan.forms if plan else (Form("plain"),)
    whole = Plan(BARE, party, forms) if plan is None else plan
    relaxed = MeanOfGuards(whole, clean)
    if plan is None:
        return {BARE: Smallest(guard=relaxed, threshold=NO_GUARD, steps=steps, restarts=1)}
    read = plan.party.read(clean, views)
    mean = np.mean([plan.party.scores(form, read) for form in forms], axis=0)
    limits = np.quantile(mean, [1 - share for share in STRICTER])
    found: dict[str, Attack] = {
        f"linf-{size:g}": Orthogonal(guard=relaxed, threshold=LOWEST, size=size, steps=steps)
        for size in budgets
    }
    for share, limit in zip(STRICTER, limits, strict=True):
        found[f"l2-{share:g}"] = Smallest(
            guard=relaxed, threshold=float(limit), steps=steps, restarts=1
        )
    return found


def victim_of(party: Party, images: Images) -> Victim:
    """Return the model with its twin."""
    manifest = party.artifact.manifest
    path = party.model
    victim = open_victim(path, manifest.input, output=manifest.answer, threads=1)
    twin = load_twin(path, manifest.input, images=images, output=manifest.answer)
    return replace(victim, twin=twin)


def names_of(plan: Plan | None, budgets: Sequence[float]) -> tuple[str, ...]:
    """Return the names of the attacks of a plan, as `ways_of` has them."""
    if plan is None:
        return (BARE,)
    sizes = (f"linf-{size:g}" for size in budgets)
    return (*sizes, *(f"l2-{share:g}" for share in STRICTER))


def made(
    name: str,
    images: Images,
    labels: NDArray[np.int64],
    folder: Path,
    attacker: Callable[[], tuple[Mapping[str, Attack], Victim]],
) -> Images:
    """Return what an attack makes of images (N, H, W, C), made now or before.

    Args:
        name: of the attack.
        images: uint8, (N, H, W, C).
        labels: int64, (N,).
        folder: of the plan's tries.
        attacker: gives the attacks of the plan and their victim; asked where some are missing.
    """
    found = []
    for start in range(0, len(images), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        file = folder / name / f"{start:05}.npz"
        if not file.is_file():
            ways, victim = attacker()
            result = ways[name](images[rows], labels[rows], victim, seed=start)
            write_file(file, npz={"images": result.images})
        with np.load(file) as stored:
            found.append(stored["images"])
    return np.concatenate(found)
