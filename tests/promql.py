# SPDX-License-Identifier: Apache-2.0
"""Checks a PromQL query against what there is: every metric, label and label value that it names.

The labels of each part of a query are worked out as Prometheus does it, so that a label that the left side
of an operator has lost is found as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import promql_parser as ql
import yaml

from detector.publish.metrics import METRICS

Labels = Mapping[str, frozenset[str]]
"""Per label its values; none where they are not known beforehand."""

_ANY: frozenset[str] = frozenset()
# Set by the scrape configuration: deploy/prometheus/prometheus.yml.
TARGET: Labels = dict.fromkeys(("job", "instance", "fleet", "relay"), _ANY)
# From a list of relays (docs/fleet.md), not from exitprint.
_FROM_ELSEWHERE: Mapping[str, Labels] = {"exitprint_expected_relay": {"fleet": _ANY, "relay": _ANY}}
_WORDS = re.compile(r"\w+(\|\w+)*")


class WrongQueryError(Exception):
    """A query names something that does not exist."""


class Schema:
    """Every series that there is: a target's `up`, the registry's, and those of recording rules."""

    def __init__(self) -> None:
        self.series: dict[str, Labels] = {"up": TARGET, **_FROM_ELSEWHERE}
        for metric in METRICS:
            own = {label.name: frozenset(label.values) for label in metric.labels}
            self.series[metric.series] = {**TARGET, **own}

    def record(self, rules: Iterable[Mapping[str, Any]]) -> None:
        """Add what recording rules make; they may look at what is made after them, and at themselves."""
        waiting = [rule for rule in rules if "record" in rule]
        while waiting:
            later: list[Mapping[str, Any]] = []
            for rule in waiting:
                name, own = rule["record"], dict.fromkeys(rule.get("labels", {}), _ANY)
                try:
                    found = self._recorded(name, rule["expr"])
                except WrongQueryError as error:
                    if not any(f"no metric {other['record']} " in str(error) for other in waiting):
                        raise
                    later.append(rule)
                else:
                    self.series[name] = _merged(self.series.get(name, {}), {**found, **own})
            if len(later) == len(waiting):
                raise WrongQueryError(f"rules wait for each other: {[rule['record'] for rule in later]}")
            waiting = later

    def _recorded(self, name: str, expr: str) -> Labels:
        """A rule that looks at itself sees what it made before."""
        if name not in self.series and name in expr:
            self.series[name] = dict.fromkeys(("fleet", "relay", "family"), _ANY)
            try:
                return self.labels(expr)
            finally:
                del self.series[name]
        return self.labels(expr)

    def alert(self, rules: Iterable[Mapping[str, Any]]) -> None:
        """Add Prometheus' own series about the alerts of these rules."""
        labels: Labels = {"alertname": _ANY, "alertstate": frozenset({"pending", "firing"}), "severity": _ANY}
        for rule in rules:
            if "alert" in rule:
                labels = _merged(labels, self.labels(rule["expr"]))
        self.series["ALERTS"] = labels

    def labels(self, query: str) -> Labels:
        """The labels of the query's result; none for a scalar.

        Raises:
            WrongQueryError: it does not parse, or names what there is not.
        """
        try:
            return self._of(ql.parse(query)) or {}
        except ValueError as error:
            raise WrongQueryError(f"{error} in {query}") from None
        except WrongQueryError as error:
            raise WrongQueryError(f"{error} in {query}") from None

    def _of(self, part: ql.Expr | None) -> Labels | None:
        """The labels of a vector, None for a scalar or a string."""
        match part:
            case ql.VectorSelector():
                return self._selected(part)
            case ql.MatrixSelector():
                return self._selected(part.vector_selector)
            case ql.ParenExpr() | ql.SubqueryExpr() | ql.UnaryExpr():
                return self._of(part.expr)
            case ql.AggregateExpr():
                return self._aggregated(part)
            case ql.BinaryExpr():
                return self._combined(part)
            case ql.Call():
                return self._called(part)
        return None

    def _selected(self, selector: ql.VectorSelector) -> Labels:
        labels = self.series.get(selector.name or "")
        if labels is None:
            raise WrongQueryError(f"there is no metric {selector.name}")
        for matcher in selector.matchers.matchers:
            values = _has(labels, matcher.name)
            if values and _WORDS.fullmatch(matcher.value) and (wrong := {*matcher.value.split("|")} - values):
                raise WrongQueryError(f"{selector.name} has no {matcher.name} {', '.join(wrong)}")
        return labels

    def _aggregated(self, part: ql.AggregateExpr) -> Labels:
        inner = self._of(part.expr) or {}
        if str(part.op) in {"topk", "bottomk"}:
            for name in part.modifier.labels if part.modifier else ():
                _has(inner, name)
            return inner
        if str(part.op) == "count_values":
            label: Any = part.param
            return {**self._by(part, inner), label.val: _ANY}
        return self._by(part, inner)

    def _by(self, part: ql.AggregateExpr, inner: Labels) -> Labels:
        """The labels that an aggregation leaves."""
        if part.modifier is None:
            return {}
        named = {name: _has(inner, name) for name in part.modifier.labels}
        if part.modifier.type == ql.AggModifierType.By:
            return named
        return {name: values for name, values in inner.items() if name not in named}

    def _combined(self, part: ql.BinaryExpr) -> Labels | None:
        left, right = self._of(part.lhs), self._of(part.rhs)
        if left is None or right is None:
            return right if left is None else left
        matching = part.modifier.matching if part.modifier else None
        if str(part.op) == "or":
            if matching:
                _matched(left, right, matching)
            return _merged(left, right)
        on = _matched(left, right, matching)
        if str(part.op) in ("and", "unless"):
            return left
        card = part.modifier.card if part.modifier else ql.VectorMatchCardinality.OneToOne
        if card == ql.VectorMatchCardinality.OneToOne:
            return on
        many, one = (left, right) if card == ql.VectorMatchCardinality.ManyToOne else (right, left)
        assert part.modifier is not None
        return {**many, **{name: _has(one, name) for name in part.modifier.group_labels or ()}}

    def _called(self, part: ql.Call) -> Labels | None:
        given = [self._of(argument) for argument in part.args]
        vectors = [labels for labels in given if labels is not None]
        match part.func.name:
            case "absent":
                return {
                    matcher.name: frozenset({matcher.value}) for matcher in part.args[0].matchers.matchers
                }
            case "label_replace":
                _, to, value, of, _ = part.args
                if of.val:
                    _has(vectors[0], of.val)
                return {**vectors[0], to.val: frozenset({value.val})}
            case "scalar":
                return None
            case "vector":
                return {}
        return vectors[0] if vectors else None


def _has(labels: Labels, name: str) -> frozenset[str]:
    if name not in labels:
        raise WrongQueryError(f"there is no label {name}, only {', '.join(sorted(labels))}")
    return labels[name]


def _matched(left: Labels, right: Labels, matching: ql.LabelModifier | None) -> Labels:
    """The labels that two sides are matched on; both must have them."""
    if matching is None or matching.type == ql.LabelModifierType.Exclude:
        without = set(matching.labels) if matching else set()
        if (set(left) ^ set(right)) - without:
            raise WrongQueryError(f"{sorted(left)} never equals {sorted(right)}")
        return {name: values for name, values in left.items() if name not in without}
    return {name: _has(left, name) & _has(right, name) or _ANY for name in matching.labels or ()}


def _merged(left: Labels, right: Labels) -> Labels:
    """Of `or`: what either side has."""
    return {name: left.get(name, _ANY) | right.get(name, _ANY) for name in {**left, **right}}


def rules_in(path: Path) -> list[dict[str, Any]]:
    """The rules of a file of Prometheus rules, in the order in which they are evaluated."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
