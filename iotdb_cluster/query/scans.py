"""Rows of series under a condition."""

from __future__ import annotations

from collections.abc import Sequence

from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query.filters import EVER, Filter, bounds, intersect, is_time_only, targets
from iotdb_cluster.query.operators import Chain, Operator, Scan, Where, batch_rows_for
from iotdb_cluster.query.requests import SeriesInfo

__all__ = ["rows_of"]

SCANS_MAX = 8  # intervals that are scanned one by one; more are scanned as one, and rows between them dropped


def rows_of(
    series: Sequence[SeriesInfo],
    node: Filter | None,
    batch_rows: int,
    *,
    descending: bool = False,
    within: tuple[int, int] = (INT64_MIN, INT64_MAX),
) -> Operator:
    """The rows of distinct series in which the condition holds and one of the series has a value."""
    intervals = intersect([bounds(node), (within,)]) if within != EVER[0] else bounds(node)
    exact = is_time_only(node)
    if len(intervals) > SCANS_MAX:
        intervals, exact = ((intervals[0][0], intervals[-1][1]),), False
    known = set(series)
    scanned = [*series, *(one for one in targets(node) if one not in known)]
    rows = min(batch_rows, batch_rows_for(scanned))
    scans = [
        Scan(scanned, low, high, ascending=not descending, batch_rows=rows)
        for low, high in (reversed(intervals) if descending else intervals)
    ]
    types = [one.type for one in scanned]
    source: Operator = scans[0] if len(scans) == 1 else Chain(types, scans)
    if node is None or exact:
        return source
    return Where(source, scanned, node, len(series))
