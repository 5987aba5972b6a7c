"""Series of several processes added up are those of one that had seen it all."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from reluguard.service.fleet.totals import Totals, families
from reluguard.service.monitoring.metrics import Metrics

Event = tuple[str, float]
EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20).map(float)), max_size=30)


class Shown(Collector):
    """A registry's only collector: what totals say."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._metrics


def registry_of(events: list[Event]) -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter("c_total", "Counted.", ["kind"], registry=registry)
    histogram = Histogram("h", "Spread.", ["kind"], buckets=(1, 5, 10), registry=registry)
    for kind, value in events:
        counter.labels(kind).inc(value)
        histogram.labels(kind).observe(value)
    return registry


def shown(totals: Totals, *registries: CollectorRegistry) -> dict[tuple[str, str], float]:
    metrics = totals.of([families(registry) for registry in registries])
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=3), EVENTS)
def test_parts_add_up_to_the_whole(parts: list[list[Event]], gone: list[Event]) -> None:
    """Whoever saw which, those who are gone included."""
    totals = Totals()
    totals.keep(families(registry_of(gone)))
    whole = [event for part in (*parts, gone) for event in part]
    together = shown(totals, *map(registry_of, parts))
    assert together == shown(Totals(), registry_of(whole))


@settings(max_examples=25, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_counters_never_fall_when_a_process_goes(parts: list[list[Event]]) -> None:
    """What each had said last is kept, however many go one after the other."""
    totals = Totals()
    registries = [registry_of(part) for part in parts]
    before = shown(totals, *registries)
    while registries:
        totals.keep(families(registries.pop()))
        assert shown(totals, *registries) == before


def test_gauges_follow_their_rule() -> None:
    """What is counted is added; of the rest the largest that is known is shown; nothing is kept."""

    def gauges(**values: float) -> CollectorRegistry:
        registry = CollectorRegistry()
        for name, value in values.items():
            Gauge(name, "A gauge.", registry=registry).set(value)
        return registry

    totals = Totals()
    one = gauges(reluguard_in_flight=3, reluguard_draining=0, reluguard_threshold=math.nan)
    other = gauges(reluguard_in_flight=4, reluguard_draining=1, reluguard_threshold=2.5)
    totals.keep(families(other))
    found = {name: value for (name, _), value in shown(totals, one, other).items()}
    assert found == {"reluguard_in_flight": 7, "reluguard_draining": 1, "reluguard_threshold": 2.5}
    assert {name for name, _ in shown(totals, one)} == set(found)


def test_what_is_added_up_can_be_scraped() -> None:
    """Prometheus reads two servers' series as it reads one's: the same text but for numbers."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    for registry in registries:
        metrics = Metrics(registry, processes=2)
        metrics.model("m", "annotate").ran(4, 0.25)
    merged = CollectorRegistry()
    merged.register(Shown(Totals().of(map(families, registries))))
    texts = [
        generate_latest(registry).decode().splitlines() for registry in (registries[0], merged)
    ]
    names = [[line.rpartition(" ")[0] for line in text if line[0] != "#"] for text in texts]
    assert names[0] == names[1]
    assert 'reluguard_batch_size_sum{model="m"} 8.0' in texts[1]
    assert "reluguard_processes 2.0" in texts[1]


@pytest.mark.parametrize("name", ["reluguard_queue_depth", "reluguard_in_flight"])
def test_what_is_added_is_a_gauge_of_ours(name: str) -> None:
    """The rule names no gauge that is not there."""
    registry = CollectorRegistry()
    Metrics(registry).model("m", "annotate").watch_queue(lambda: 0)
    assert name in {family.name for family in registry.collect()}
