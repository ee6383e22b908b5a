# SPDX-License-Identifier: Apache-2.0
"""From the current snapshot to the exposition format: families are made afresh at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from detector.service.metrics import BY_NAME, PREFIX

Samples = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]


def registry(samples: Callable[[], Samples]) -> CollectorRegistry:
    """A registry that asks for the samples at each scrape.

    Args:
        samples: by name of the metric (as in `METRICS`), label values and value.
    """
    made = CollectorRegistry(auto_describe=False)
    made.register(_Exporter(samples))
    return made


class _Exporter(Collector):
    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for name, rows in self._samples().items():
            yield _family(name, rows)


def _family(name: str, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    about = BY_NAME[name]
    if about.kind == "info":
        info = InfoMetricFamily(PREFIX + name, about.help)
        for labels, _ in rows:
            info.add_metric((), dict(zip(about.label_names, labels, strict=True)))
        return info
    kind = CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily
    family = kind(PREFIX + name, about.help, labels=about.label_names, unit=about.unit)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family
