"""The demo's story on a terminal, in ten lines."""

from collections.abc import Sequence

from reluguard.training.demo.picture import Pair
from reluguard.training.demo.run import DemoResult

__all__ = ["print_demo", "story"]


def print_demo(result: DemoResult) -> None:
    """Print the story."""
    print("\n".join(story(result)))  # noqa: T201 - what the command is for


def story(result: DemoResult) -> list[str]:
    """Return it, line by line."""
    s, guard = result.summary, result.files.guard
    right, caught = _percent(s["clean_accuracy"]), _percent(result.detected.value)
    same = "the same, bit for bit" if s["logits_identical"] else "NOT the same"
    served = "what the guard says" if s["served_equals_offline"] else "SOMETHING ELSE"
    return [
        f"Handwritten digits on photographs, and a small network that reads {right} of new ones.",
        *(_told(result.pairs[0]) if result.pairs else ()),
        f"Caught: {caught} of {s['attacked_images']} attacks that fooled it, on unseen pictures.",
        f"False alarms: {_percent(result.alarms.value)} of {s['clean_images']} untouched pictures.",
        f"AUROC {result.auroc}, of attacks against untouched pictures.",
        f"The network's answers are {same}; by gRPC the server says {served}.",
        f"Its /metrics counted {_counted(result.metrics)}.",
        f"Picture: {result.picture}, report card: {guard / 'report.html'}",
        f"{s['seconds']:.0f} s in all. Now play with it: reluguard try --out {guard.parent}",
    ]


def _told(pair: Pair) -> list[str]:
    calm, loud = pair.calm, pair.loud
    layer = max(range(len(loud.evidence)), key=lambda tap: loud.evidence[tap] - calm.evidence[tap])
    small = f"No value moved by more than {pair.largest} of 255, and it is read as"
    return [
        f"A {pair.label}, read as {calm.prediction}: not flagged, p-value {calm.p_value:.3f}.",
        f"{small} {loud.prediction}: ADVERSARIAL, p-value {loud.p_value:.3f} (layer {layer + 1}).",
    ]


def _counted(metrics: Sequence[str]) -> str:
    """Return the server's own count of verdicts."""
    found = {}
    for line in metrics:
        for verdict in ("adversarial", "clean"):
            if line.startswith("reluguard_verdicts_total") and f'verdict="{verdict}"' in line:
                found[verdict] = float(line.rpartition(" ")[2])
    return " and ".join(f"{count:.0f} {verdict}" for verdict, count in found.items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
