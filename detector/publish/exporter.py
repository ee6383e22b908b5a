# SPDX-License-Identifier: Apache-2.0
"""From the current snapshot to the exposition format: families are made afresh for each snapshot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from detector.publish.metrics import BY_NAME, PREFIX

Samples = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]


def registry(samples: Callable[[], Samples]) -> CollectorRegistry:
    """A registry that asks for the samples at each scrape.

    Args:
        samples: by name of the metric (as in `METRICS`), label values and value.
    """
    made = CollectorRegistry(auto_describe=False)
    made.register(_Exporter(samples))
    return made


class Exposition:
    """What /metrics says: written once for each moment and format, however many ask.

    Args:
        moment: what it is about, a new tuple of objects that are never changed.
        samples: from those objects to what `registry` takes.
    """

    def __init__(self, moment: Callable[[], tuple[Any, ...]], samples: Callable[..., Samples]) -> None:
        self._moment = moment
        self._samples = samples
        self._of: tuple[Any, ...] = ()
        self._pages: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that a client's Accept header asks for."""
        encode, kind = choose_encoder(accept)
        with self._lock:
            now = self._moment()
            if list(map(id, now)) != list(map(id, self._of)):
                self._of, self._pages = now, {}
            if kind not in self._pages:
                self._pages[kind] = encode(registry(lambda: self._samples(*now)))
            return self._pages[kind], kind


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
