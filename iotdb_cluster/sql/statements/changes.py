"""Statements that change points or the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.sql.statements.base import Statement
from iotdb_cluster.sql.statements.values import Pairs

__all__ = [
    "AlterAddAttributes",
    "AlterAddTags",
    "AlterChange",
    "AlterDrop",
    "AlterRename",
    "AlterSet",
    "AlterTimeseries",
    "AlterUpsert",
    "CreateSnapshot",
    "CreateTimeseries",
    "Delete",
    "DeletePartition",
    "DeleteStorageGroups",
    "DeleteTimeseries",
    "Insert",
    "SetStorageGroup",
    "SetTtl",
    "UnsetTtl",
]


@dataclass(frozen=True, slots=True)
class Insert(Statement):
    """One row. `values` are texts in the form that the type conversion takes: strings keep their outer quotes."""

    OPERATION: ClassVar[str] = "INSERT"

    device: str
    time: int
    measurements: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delete(Statement):
    """Delete the points of all series below each path with start <= time <= end (inclusive)."""

    OPERATION: ClassVar[str] = "DELETE"

    paths: tuple[str, ...]
    start: int = INT64_MIN
    end: int = INT64_MAX


@dataclass(frozen=True, slots=True)
class SetStorageGroup(Statement):
    OPERATION: ClassVar[str] = "SET_STORAGE_GROUP"

    path: str


@dataclass(frozen=True, slots=True)
class DeleteStorageGroups(Statement):
    OPERATION: ClassVar[str] = "DELETE_STORAGE_GROUP"

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreateTimeseries(Statement):
    """`encoding` and `compressor` are None where the type's default applies; keys and values lack outer quotes."""

    OPERATION: ClassVar[str] = "CREATE_TIMESERIES"

    path: str
    data_type: DataType
    encoding: Encoding | None = None
    compressor: Compressor | None = None
    alias: str | None = None
    properties: Pairs = ()
    tags: Pairs = ()
    attributes: Pairs = ()


@dataclass(frozen=True, slots=True)
class DeleteTimeseries(Statement):
    OPERATION: ClassVar[str] = "DELETE_TIMESERIES"

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlterRename:
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class AlterSet:
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class AlterDrop:
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlterAddTags:
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class AlterAddAttributes:
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class AlterUpsert:
    alias: str | None
    tags: Pairs
    attributes: Pairs


AlterChange: TypeAlias = AlterRename | AlterSet | AlterDrop | AlterAddTags | AlterAddAttributes | AlterUpsert


@dataclass(frozen=True, slots=True)
class AlterTimeseries(Statement):
    OPERATION: ClassVar[str] = "ALTER_TIMESERIES"

    path: str
    change: AlterChange


@dataclass(frozen=True, slots=True)
class SetTtl(Statement):
    """`ttl` is in milliseconds, >= 0."""

    OPERATION: ClassVar[str] = "TTL"

    path: str
    ttl: int


@dataclass(frozen=True, slots=True)
class UnsetTtl(Statement):
    OPERATION: ClassVar[str] = "TTL"

    path: str


@dataclass(frozen=True, slots=True)
class DeletePartition(Statement):
    OPERATION: ClassVar[str] = "DELETE_PARTITION"

    path: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CreateSnapshot(Statement):
    OPERATION: ClassVar[str] = "CREATE_SCHEMA_SNAPSHOT"
