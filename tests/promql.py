"""What the shipped dashboard and alerts ask of Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

DEPLOY = Path(__file__).parents[1] / "configs" / "deploy"
RATES = {"rate", "irate", "increase"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One metric in one query. ``labels`` is what is matched in it or what it is grouped by."""

    metric: str
    labels: frozenset[str]
    is_rated: bool
    query: str


def panels() -> list[dict[str, Any]]:
    """Those with queries: not the rows."""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    """All of them, Grafana's variables filled in."""
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    of_alerts = [rule["expr"] for rule in alerts()]
    return [query.replace("$__rate_interval", "1m") for query in of_panels + of_alerts]


def asked(query: str) -> list[Asked]:
    """Raises ValueError where it is no PromQL."""
    return list(_asked(promql.parse(query), frozenset(), False, query))


def _asked(node: Any, labels: frozenset[str], is_rated: bool, query: str) -> Iterator[Asked]:
    if isinstance(node, promql.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql.VectorSelector):
        matched = {matcher.name for matcher in node.matchers.matchers}
        yield Asked(metric=node.name, labels=labels | matched, is_rated=is_rated, query=query)
        return
    if isinstance(node, promql.AggregateExpr):
        by = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        children, labels = [node.expr], by
    elif isinstance(node, promql.Call):
        children, is_rated = node.args, node.func.name in RATES
    elif isinstance(node, promql.BinaryExpr):
        children = [node.lhs, node.rhs]
    elif isinstance(node, promql.ParenExpr | promql.UnaryExpr):
        children = [node.expr]
    else:
        assert isinstance(node, promql.NumberLiteral | promql.StringLiteral), type(node)
        children = []
    for child in children:
        yield from _asked(child, labels, is_rated, query)
