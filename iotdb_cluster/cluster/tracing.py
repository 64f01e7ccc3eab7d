"""TRACING ON: what each query asks of the cluster, and how long that takes, as lines of the log.

Two lines a query: one when its first rows are there, with what was asked for them, one when it ends.
"""

from __future__ import annotations

import logging
from typing import Any

from iotdb_cluster.columns import RowBatch
from iotdb_cluster.limits import STATEMENT_SHOWN_CHARS_MAX
from iotdb_cluster.query.requests import Aggregate, Last, MatchSeries, Nearest, OpenScan, Pull, Request
from iotdb_cluster.world import Clock

__all__ = ["Trace"]

logger = logging.getLogger("iotdb_cluster.tracing")


class _Kind:
    """Requests of one kind."""

    __slots__ = ("count", "items", "ms")

    def __init__(self) -> None:
        self.count = 0
        self.ms = 0.0
        self.items = 0


class Trace:
    """One query's."""

    def __init__(self, clock: Clock, query_id: int, user: str, text: str) -> None:
        self._clock = clock
        self._id = query_id
        self._began_ms = clock.monotonic_ms()
        self._kinds: dict[str, _Kind] = {}
        self._rows = 0
        logger.info("query %d of %s: %s", query_id, user, text[:STATEMENT_SHOWN_CHARS_MAX])

    def asked(self, request: Request, answer: Any, took_ms: float) -> None:
        kind = self._kinds.setdefault(type(request).__name__, _Kind())
        kind.count += 1
        kind.ms += took_ms
        kind.items += _items(request, answer)

    def planned(self, columns: int) -> None:
        """The first rows are there."""
        logger.info(
            "query %d: %d columns, first rows after %.1f ms; %s", self._id, columns, self._elapsed_ms(), self._summary()
        )

    def fetched(self, rows: int) -> None:
        self._rows += rows

    def ended(self, how: str) -> None:
        logger.info(
            "query %d: %s after %.1f ms, %d rows; %s", self._id, how, self._elapsed_ms(), self._rows, self._summary()
        )

    def _elapsed_ms(self) -> float:
        return self._clock.monotonic_ms() - self._began_ms

    def _summary(self) -> str:
        parts = [
            f"{name} x{kind.count} {kind.ms:.1f} ms" + (f" ({kind.items})" if kind.items else "")
            for name, kind in self._kinds.items()
        ]
        return ", ".join(parts) or "nothing asked"


def _items(request: Request, answer: Any) -> int:
    """Series of a request for points, series found by one for schema, rows pulled."""
    if isinstance(request, MatchSeries):
        return sum(map(len, answer))
    if isinstance(request, OpenScan | Aggregate | Last | Nearest):
        return len(request.series)
    if isinstance(request, Pull):
        return sum(len(batch) for batch in answer if isinstance(batch, RowBatch))
    return 0
