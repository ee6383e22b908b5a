# SPDX-License-Identifier: Apache-2.0
"""docs/metrics.md, made from the registry: `python -m tools.metrics_page`."""

from __future__ import annotations

from pathlib import Path

from detector.publish.metrics import METRICS, Label, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

_HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Made by `make generate` from detector/publish/metrics.py. -->
# Metrics

Served on `/metrics`, as OpenMetrics to those who ask for it and as Prometheus text to others. No label ever
holds a peer, a key, a tunnel address or a destination, and the number of series does not grow with the peers.
What a report says (source: report) is about the window. Series of things that are gone disappear with the
next scrape.

The exporter does not say which relay it is: the scrape configuration does, with the target labels `fleet` and
`relay` (see `deploy/prometheus/prometheus.yml`). The alert rules and the dashboards need both.

| metric | type | unit | labels | meaning | source |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(_row(metric) for metric in METRICS) + _labels()


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{name}`" for name in metric.label_names) or "–"
    cells = (f"`{metric.series}`", metric.kind, metric.unit or "–", labels, metric.help, metric.source)
    return f"| {' | '.join(cells)} |\n"


def _labels() -> str:
    """What each label can be; one name with different values is told apart by the metric."""
    found: dict[Label, list[str]] = {}
    for metric in METRICS:
        for label in metric.labels:
            found.setdefault(label, []).append(metric.series)
    rows = (
        f"| `{label.name}` | {', '.join(f'`{value}`' for value in label.values) or 'one that is constant'} "
        f"| {', '.join(f'`{series}`' for series in users)} |\n"
        for label, users in sorted(found.items(), key=lambda item: item[0].name)
    )
    return "\n| label | values | of |\n| --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
