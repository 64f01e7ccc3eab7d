"""What preparing a statement gives: the header of its result, and its rows on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, TypeVar

from iotdb_cluster.columns import Column, DataType, RowBatch, concat_columns
from iotdb_cluster.limits import QUERY_SERIES_MAX, RESPONSE_BYTES_MAX, SCAN_BATCH_ROWS
from iotdb_cluster.query.operators import Memory, Operator, select_rows
from iotdb_cluster.query.requests import Request, Steps

__all__ = ["Header", "Plan", "QueryContext", "drive", "header_of"]

PARTS_JOINED_MAX = 64  # batches of a fetch that become one at a time

T = TypeVar("T")


@dataclass(frozen=True)
class QueryContext:
    """What a statement's answer depends on beside the data: nothing else is asked.

    `zone`: of the session, for calendar months. `version`: what SHOW VERSION says. `batch_rows`: rows of a batch.
    """

    zone: tzinfo = UTC
    version: str = "0.12.5"
    batch_rows: int = SCAN_BATCH_ROWS
    series_max: int = QUERY_SERIES_MAX


@dataclass(frozen=True)
class Header:
    """The head of a result set.

    `columns` and `types`: the names in the order of the statement (duplicates kept) and their types. The rows hold one
    *physical* column for each distinct name, in order of first mention: `physical[i]` is the one that column i shows.
    `name_index`: name -> physical column, where the protocol sends that map. `ignore_time`: the times mean nothing.
    `non_align`: the columns are to be sent one by one, without nulls (DISABLE ALIGN).
    """

    columns: tuple[str, ...]
    types: tuple[DataType, ...]
    ignore_time: bool
    operation: str
    name_index: dict[str, int] | None = None
    non_align: bool = False

    @property
    def physical(self) -> tuple[int, ...]:
        places: dict[str, int] = {}
        return tuple(places.setdefault(name, len(places)) for name in self.columns)

    @property
    def physical_types(self) -> tuple[DataType, ...]:
        kinds: dict[str, DataType] = {}
        for name, kind in zip(self.columns, self.types, strict=True):
            kinds.setdefault(name, kind)
        return tuple(kinds.values())


def header_of(
    columns: Sequence[tuple[str, DataType]],
    operation: str,
    *,
    ignore_time: bool = False,
    mapped: bool = False,
    non_align: bool = False,
) -> Header:
    """`mapped`: with the map of names. Columns of one name show one physical column, the first, and have its type."""
    kinds: dict[str, DataType] = {}
    for name, kind in columns:
        kinds.setdefault(name, kind)
    names = tuple(name for name, _ in columns)
    index = {name: place for place, name in enumerate(kinds)} if mapped else None
    return Header(names, tuple(kinds[name] for name in names), ignore_time, operation, index, non_align)


class Plan:
    """A prepared query. Its methods are generators to be driven like `prepare`; `close` it whatever happens."""

    def __init__(self, header: Header, source: Operator) -> None:
        self.header = header
        self._types = header.physical_types  # here, where a worker makes what is wide
        self._source = source
        self._rest: RowBatch | None = None
        self._ended = False

    def fetch(self, rows: int) -> Steps[RowBatch]:
        """The next `rows` rows (at least one), or fewer; no rows at all behind the end of the result.

        Fewer than asked for come at the end, and where they fill a response.
        """
        runs: list[RowBatch] = []  # each of `PARTS_JOINED_MAX` parts: joining all at the end could hold up the loop
        parts: list[RowBatch] = []
        have = held = 0
        while have < rows and held < RESPONSE_BYTES_MAX:
            batch, self._rest = self._rest, None
            if batch is None:
                batch = None if self._ended else (yield from self._source.pull())
                if batch is None:
                    self._ended = True
                    break
            if have + len(batch) > rows:
                batch, self._rest = (
                    select_rows(batch, slice(0, rows - have)),
                    select_rows(batch, slice(rows - have, None)),
                )
            parts.append(batch)
            have += len(batch)
            held += batch.nbytes
            if len(parts) == PARTS_JOINED_MAX:
                runs.append(_joined(parts, self._types))
                parts = []
        if self._ended:
            yield from self._source.close()
        return _joined([*runs, *parts], self._types)

    @property
    def ended(self) -> bool:
        """Whether it is known already that no row is left."""
        return self._ended and self._rest is None

    def close(self) -> Steps[None]:
        """Give back what the query holds open; may be called more than once."""
        self._ended, self._rest = True, None
        yield from self._source.close()


def _joined(parts: list[RowBatch], types: Sequence[DataType]) -> RowBatch:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        nothing = [Column.nulls(kind, 0) for kind in types]
        return RowBatch(Column.nulls(DataType.INT64, 0).values, nothing)  # type: ignore[arg-type]
    times = concat_columns([Column(DataType.INT64, part.times) for part in parts]).values
    columns = [concat_columns(list(cells)) for cells in zip(*(part.columns for part in parts), strict=True)]
    return RowBatch(times, columns)  # type: ignore[arg-type]


def in_memory(header: Header, rows: RowBatch | None) -> Plan:
    """A plan whose rows are there already."""
    return Plan(header, Memory(header.physical_types, rows))


def drive(steps: Steps[T], answer: Callable[[Request], Any]) -> T:
    """Run a generator to its end with a function that answers its requests: for tests, and what is all in memory."""
    try:
        request = next(steps)
        while True:
            try:
                response = answer(request)
            except Exception as failure:
                request = steps.throw(failure)
            else:
                request = steps.send(response)
    except StopIteration as stop:
        result: T = stop.value
        return result
