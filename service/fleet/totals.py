"""What Prometheus sees of a server of several processes: their series added up.

Counters and histograms are added, with what processes that are gone had last said, so they never
fall. Of gauges each has its rule: what is counted is added, of what is the same everywhere or the
worst of all the largest is shown.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

__all__ = ["ADDED", "Totals", "families"]

ADDED = frozenset({"reluguard_queue_depth", "reluguard_in_flight", "reluguard_processes"})
_GROWING = {"counter", "histogram"}
_Key = tuple[str, tuple[tuple[str, str], ...]]


def families(registry: CollectorRegistry) -> list[dict[str, Any]]:
    """Return what a registry shows now, as plain values."""
    return _plain(registry.collect())


def _plain(metrics: Iterable[Metric]) -> list[dict[str, Any]]:
    return [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                [sample.name, sorted(sample.labels.items()), sample.value]
                for sample in family.samples
                if not sample.name.endswith("_created")  # which a sum does not have
            ],
        }
        for family in metrics
    ]


class Totals:
    """Adds up; remembers what those who are gone had counted."""

    def __init__(self) -> None:
        self._gone: list[dict[str, Any]] = []

    def keep(self, report: Sequence[Mapping[str, Any]]) -> None:
        """Take the last `families` of a process that is gone."""
        counted = [family for family in report if family["type"] in _GROWING]
        self._gone = _plain(_merge([self._gone, counted]))

    def of(self, reports: Iterable[Sequence[Mapping[str, Any]]]) -> list[Metric]:
        """Return the sum of what processes show, and of what is remembered."""
        return _merge([*reports, self._gone])


def _merge(reports: Sequence[Sequence[Mapping[str, Any]]]) -> list[Metric]:
    merged: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for report in reports:
        for family in report:
            name = family["name"]
            if name not in merged:
                merged[name] = Metric(name, family["help"], family["type"])
                values[name] = {}
            adds = family["type"] in _GROWING or name in ADDED
            theirs = values[name]
            for sample, labels, value in family["samples"]:
                key = sample, tuple((label, text) for label, text in labels)
                theirs[key] = _both(theirs[key], value, adds=adds) if key in theirs else value
    for name, whole in merged.items():
        for (sample, labels), value in values[name].items():
            whole.add_sample(sample, dict(labels), value)
    return list(merged.values())


def _both(one: float, other: float, *, adds: bool) -> float:
    if adds:
        return one + other
    if math.isnan(one):  # no process says more than another: what is known is shown
        return other
    return one if math.isnan(other) else max(one, other)
