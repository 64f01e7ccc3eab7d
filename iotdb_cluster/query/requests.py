"""What a running query asks of its surroundings, and the answers that it expects.

Planning and execution are generators (`Steps`): they yield a request, are sent its answer, and end with a result. The
node answers requests over the network, a test out of a dict. Where a request fails the driver throws the failure in.

Requests name series by `SeriesInfo`, which `MatchSeries` gave: it carries all that a data group needs to read a
series without asking for its schema again.

Every class names its answer. Lists that answer a list run parallel to it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from iotdb_cluster.columns import Compressor, DataType, Encoding, Int64Array
from iotdb_cluster.limits import INT64_MIN

if TYPE_CHECKING:
    pass

__all__ = [
    "Aggregate",
    "CloseScan",
    "CountNodes",
    "CountSeries",
    "CountSeriesByLevel",
    "DeviceInfo",
    "FlushTasks",
    "FlushTasksInfo",
    "IsTag",
    "Last",
    "ListQueries",
    "ListStorageGroups",
    "MatchChildren",
    "MatchDevices",
    "MatchSeries",
    "MergeInfo",
    "MergeTasks",
    "Nearest",
    "Needs",
    "OpenScan",
    "Point",
    "Pull",
    "Request",
    "RunningQuery",
    "SeriesInfo",
    "Steps",
    "StorageGroupInfo",
    "Stream",
]

T = TypeVar("T")
Pairs: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """A series as a query sees it; equal for equal series throughout one statement.

    `decimals`: FLOAT and DOUBLE declared RLE or TS_2DIFF are read rounded to this many (MAX_POINT_NUMBER, else 2); None
    reads exactly. `visible_from`: lowest time that the storage group's TTL leaves visible at the statement's instant,
    INT64_MIN without one. `tags` and `attributes` are (key, value) pairs in the order in which they are shown.
    """

    path: str
    device: str
    measurement: str
    type: DataType
    storage_group: str
    storage_group_id: int
    encoding: Encoding = Encoding.PLAIN
    compressor: Compressor = Compressor.SNAPPY
    alias: str | None = None
    decimals: int | None = None
    visible_from: int = INT64_MIN
    tags: Pairs = ()
    attributes: Pairs = ()


# --- schema -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class MatchSeries:
    """-> list[list[SeriesInfo]]: for each pattern the series that it matches, sorted by path, each once.

    A pattern matches a series whose first nodes it matches node by node (`*` any node, `d*` a node that begins so): a
    shorter pattern takes everything below it. The last node of a pattern may be a series' alias instead of its
    measurement, if it is written out and the lengths are equal. `limit`: at most so many a pattern, lowest paths first.
    A first node other than `root` matches nothing.
    """

    patterns: tuple[str, ...]
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    path: str
    storage_group: str


@dataclass(frozen=True, slots=True)
class MatchDevices:
    """-> list[DeviceInfo] sorted by path: devices (nodes with a series as direct child) that begin as the pattern."""

    pattern: str
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class StorageGroupInfo:
    """`id` grows with the order of creation."""

    path: str
    ttl_ms: int | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class ListStorageGroups:
    """-> list[StorageGroupInfo] sorted by path: those whose path begins as the pattern (at it or below it)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class MatchChildren:
    """-> list[str] sorted: full paths of the children of the nodes that the pattern matches at its own length."""

    pattern: str


@dataclass(frozen=True, slots=True)
class CountSeries:
    """-> int, or None where the pattern's nodes before its first `*` do not exist. Only a bare `*` is a wildcard."""

    pattern: str


@dataclass(frozen=True, slots=True)
class CountSeriesByLevel:
    """-> list[(prefix, count)] sorted: series below the pattern by their first `level` + 1 nodes (root is level 0)."""

    pattern: str
    level: int


@dataclass(frozen=True, slots=True)
class CountNodes:
    """-> int: nodes of this level (root is 0) whose path begins as the pattern; -1 where no node is at the pattern."""

    pattern: str
    level: int


@dataclass(frozen=True, slots=True)
class IsTag:
    """-> bool: whether any series has this key among its tags."""

    key: str


# --- points -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class OpenScan:
    """-> list[Stream]: the points of `series` with low <= time <= high, as joined rows in order of time.

    `series` are distinct. Each stream gives the rows of some of the columns, at most `batch_rows` a batch; usually one
    a storage group. Columns of one stream need not be different from another's if their times are (time partitions).
    Values come rounded at read (`SeriesInfo.decimals`) and without what `visible_from` hides. Rows without a value in
    any of the stream's columns may be left out.
    """

    series: tuple[SeriesInfo, ...]
    low: int
    high: int
    ascending: bool
    batch_rows: int


@dataclass(frozen=True, slots=True)
class Stream:
    """`columns[i]`: which of the scan's series the i-th column of the stream's batches is."""

    id: int
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """-> list[RowBatch | None]: the next batch (never empty) of each stream at the same time, None at its end.

    A stream that gave None is closed and is not named again.
    """

    streams: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CloseScan:
    """-> None: the query is done with these streams, some of which may have ended."""

    streams: tuple[int, ...]


class Needs(IntFlag):
    """Which parts of `Partials` are wanted; count and the times of the first and last point always are."""

    COUNT = 0
    SUM = 1
    EXTREMES = 2  # lowest and highest value
    ENDS = 4  # first and last value


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """-> list[Partials]: for each series one, over w windows, merged over all units (`query.partials.merge`).

    Window i holds starts[i] <= time <= ends[i] (int64[w], inclusive); windows ascend and do not overlap. `needs` runs
    parallel to `series`, which are distinct.
    """

    series: tuple[SeriesInfo, ...]
    needs: tuple[Needs, ...]
    starts: Int64Array
    ends: Int64Array


@dataclass(frozen=True, slots=True)
class Point:
    """A point; the value is a bool, int, float or bytes (UTF-8). A FLOAT's is the exact value of its 32 bits."""

    time: int
    value: Any


@dataclass(frozen=True, slots=True)
class Last:
    """-> list[Point | None]: the newest visible point of each series at or after `low`; its value is not rounded."""

    series: tuple[SeriesInfo, ...]
    low: int


@dataclass(frozen=True, slots=True)
class Nearest:
    """-> list[(previous: Point | None, next: Point | None)], values rounded at read.

    previous: the newest with low <= its time <= `time`; next: the oldest with `time` <= its time <= high. A point at
    `time` is both.
    """

    series: tuple[SeriesInfo, ...]
    time: int
    low: int
    high: int


# --- the node ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class FlushTasksInfo:
    total: int
    working: int
    waiting: int


@dataclass(frozen=True, slots=True)
class FlushTasks:
    """-> FlushTasksInfo."""


@dataclass(frozen=True, slots=True)
class MergeInfo:
    """A merge of chunk files: its storage group's path, a name, when it began (Unix ms), how far it is."""

    storage_group: str
    task: str
    created_ms: int
    progress: str


@dataclass(frozen=True, slots=True)
class MergeTasks:
    """-> list[MergeInfo]: what this node merges, and what waits."""


@dataclass(frozen=True, slots=True)
class RunningQuery:
    start_ms: int
    id: int
    statement: str


@dataclass(frozen=True, slots=True)
class ListQueries:
    """-> list[RunningQuery] in order of id, without the one that asks."""


Request: TypeAlias = (
    MatchSeries
    | MatchDevices
    | ListStorageGroups
    | MatchChildren
    | CountSeries
    | CountSeriesByLevel
    | CountNodes
    | IsTag
    | OpenScan
    | Pull
    | CloseScan
    | Aggregate
    | Last
    | Nearest
    | FlushTasks
    | MergeTasks
    | ListQueries
)

Steps: TypeAlias = Generator[Request, Any, T]
"""A computation that yields requests, is sent their answers, and returns a T."""
