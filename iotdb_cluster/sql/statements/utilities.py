"""The working of the server, functions, triggers, and what is not supported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iotdb_cluster.errors import Status
from iotdb_cluster.sql.statements.base import Statement
from iotdb_cluster.sql.statements.values import Pairs

__all__ = [
    "ClearCache",
    "CreateFunction",
    "CreateTrigger",
    "DropFunction",
    "DropTrigger",
    "Flush",
    "Kill",
    "LoadConfiguration",
    "LoadFiles",
    "LoadTimeseries",
    "Merge",
    "MoveFile",
    "RemoveFile",
    "SetSystemMode",
    "StartTrigger",
    "StopTrigger",
    "Tracing",
    "Unsupported",
]


@dataclass(frozen=True, slots=True)
class Merge(Statement):
    """MERGE, or FULL MERGE."""

    full: bool = False

    @property
    def operation(self) -> str:
        return "FULL_MERGE" if self.full else "MERGE"


@dataclass(frozen=True, slots=True)
class Flush(Statement):
    """`paths`: storage groups, empty for all; `sequence`: the optional TRUE or FALSE."""

    OPERATION: ClassVar[str] = "FLUSH"

    paths: tuple[str, ...] = ()
    sequence: bool | None = None


@dataclass(frozen=True, slots=True)
class ClearCache(Statement):
    OPERATION: ClassVar[str] = "CLEAR_CACHE"


@dataclass(frozen=True, slots=True)
class SetSystemMode(Statement):
    OPERATION: ClassVar[str] = "SET_SYSTEM_MODE"

    read_only: bool


@dataclass(frozen=True, slots=True)
class Kill(Statement):
    """KILL QUERY; `query_id` is None for all."""

    OPERATION: ClassVar[str] = "KILL"

    query_id: int | None = None


@dataclass(frozen=True, slots=True)
class Tracing(Statement):
    OPERATION: ClassVar[str] = "TRACING"

    on: bool


@dataclass(frozen=True, slots=True)
class LoadConfiguration(Statement):
    OPERATION: ClassVar[str] = "LOAD_CONFIGURATION"

    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class LoadFiles(Statement):
    OPERATION: ClassVar[str] = "LOAD_FILES"

    file: str
    auto_register: bool = True
    sg_level: int | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class LoadTimeseries(Statement):
    OPERATION: ClassVar[str] = "LOAD_DATA"

    file: str
    path: str


@dataclass(frozen=True, slots=True)
class RemoveFile(Statement):
    OPERATION: ClassVar[str] = "REMOVE_FILE"

    file: str


@dataclass(frozen=True, slots=True)
class MoveFile(Statement):
    OPERATION: ClassVar[str] = "MOVE_FILE"

    file: str
    directory: str


@dataclass(frozen=True, slots=True)
class CreateFunction(Statement):
    OPERATION: ClassVar[str] = "CREATE_FUNCTION"

    name: str
    class_name: str
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class DropFunction(Statement):
    OPERATION: ClassVar[str] = "DROP_FUNCTION"

    name: str


@dataclass(frozen=True, slots=True)
class CreateTrigger(Statement):
    OPERATION: ClassVar[str] = "CREATE_TRIGGER"

    name: str
    before: bool
    path: str
    class_name: str
    attributes: Pairs = ()


@dataclass(frozen=True, slots=True)
class DropTrigger(Statement):
    OPERATION: ClassVar[str] = "DROP_TRIGGER"

    name: str


@dataclass(frozen=True, slots=True)
class StartTrigger(Statement):
    OPERATION: ClassVar[str] = "START_TRIGGER"

    name: str


@dataclass(frozen=True, slots=True)
class StopTrigger(Statement):
    OPERATION: ClassVar[str] = "STOP_TRIGGER"

    name: str


@dataclass(frozen=True, slots=True)
class Unsupported(Statement):
    """A statement that the language has and no server of it carries out: answer `code` with `message`.

    kind: UPDATE, SHOW_METADATA, DESCRIBE, CREATE_INDEX, DROP_INDEX or QUERY_INDEX.
    """

    kind: str
    code: Status
    message: str

    @property
    def operation(self) -> str:
        return self.kind
