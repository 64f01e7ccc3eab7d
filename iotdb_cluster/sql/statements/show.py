"""SHOW and COUNT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iotdb_cluster.sql.statements.base import Statement

__all__ = [
    "CountDevices",
    "CountNodes",
    "CountStorageGroups",
    "CountTimeseries",
    "ShowChildNodes",
    "ShowChildPaths",
    "ShowDevices",
    "ShowFlushTaskInfo",
    "ShowFunctions",
    "ShowLockInfo",
    "ShowMerge",
    "ShowQueryProcesslist",
    "ShowStorageGroups",
    "ShowTimeseries",
    "ShowTriggers",
    "ShowTtl",
    "ShowVersion",
]


class _Show(Statement):
    __slots__ = ()
    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "SHOW"


@dataclass(frozen=True, slots=True)
class ShowTtl(_Show):
    """`paths` is None for SHOW ALL TTL."""

    paths: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class ShowTimeseries(_Show):
    """`tag`: (key, value) of the WHERE clause, or None; `contains` tells CONTAINS from `=`. `latest`: SHOW LATEST."""

    path: str = "root"
    tag: tuple[str, str] | None = None
    contains: bool = False
    latest: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ShowStorageGroups(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class ShowChildPaths(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class ShowChildNodes(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class ShowDevices(_Show):
    path: str = "root"
    with_storage_group: bool = False
    limit: int | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class CountTimeseries(_Show):
    """`level` is None without GROUP BY LEVEL."""

    path: str = "root"
    level: int | None = None


@dataclass(frozen=True, slots=True)
class CountDevices(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class CountStorageGroups(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class CountNodes(_Show):
    path: str
    level: int


@dataclass(frozen=True, slots=True)
class ShowVersion(_Show):
    pass


@dataclass(frozen=True, slots=True)
class ShowFlushTaskInfo(_Show):
    pass


@dataclass(frozen=True, slots=True)
class ShowLockInfo(_Show):
    path: str = "root"


@dataclass(frozen=True, slots=True)
class ShowMerge(_Show):
    OPERATION: ClassVar[str] = "SHOW_MERGE_STATUS"


@dataclass(frozen=True, slots=True)
class ShowQueryProcesslist(_Show):
    pass


@dataclass(frozen=True, slots=True)
class ShowFunctions(_Show):
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class ShowTriggers(_Show):
    path: str = "root"
