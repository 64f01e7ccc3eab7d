"""What the client service calls: the node implements `ClientHandler`, this room turns bytes into these calls.

Every call that asks for something takes the session first and fails with `CallerError`, whose code and message are the
answer. `InvariantViolation` goes to the service's fault callback; any other exception is answered with code 500.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol, TypeAlias

from iotdb_cluster.columns import Block, Column, DataType, Int64Array, RowBatch
from iotdb_cluster.errors import CallerError

__all__ = [
    "ClientHandler",
    "Done",
    "InsertKind",
    "MetadataKind",
    "Redirect",
    "ResultHeader",
    "ResultSet",
    "SeriesRequest",
    "ServerProperties",
    "Session",
    "StatementKind",
    "TemplateRequest",
    "TextRow",
]

StatementKind: TypeAlias = Literal["any", "query", "update"]
MetadataKind: TypeAlias = Literal["METADATA_IN_JSON", "COLUMN", "ALL_COLUMNS"]


@dataclass(eq=False, slots=True)
class Session:
    """One login over one connection. `zone` is canonical text ("+08:00", "Z", "Asia/Shanghai"); see `rpc.zones`.

    `notes` belongs to the handler (caches, privileges); this room never looks into it.
    """

    id: int
    user: str
    zone: str
    client: str  # "address:port" of the other side, for logs and process lists
    opened_ms: int  # Unix time
    notes: dict[str, object] = field(default_factory=dict)


class InsertKind(Enum):
    """Which call an insert came by; decides how its failures are told."""

    RECORD = "insertRecord"
    RECORDS = "insertRecords"
    RECORDS_OF_ONE_DEVICE = "insertRecordsOfOneDevice"
    TABLET = "insertTablet"
    TABLETS = "insertTablets"
    STRING_RECORD = "insertStringRecord"
    STRING_RECORDS = "insertStringRecords"

    @property
    def one_device(self) -> bool:
        """Whether the answer may name the node that leads the device's group."""
        return self not in (InsertKind.RECORDS, InsertKind.TABLETS, InsertKind.STRING_RECORDS)


@dataclass(frozen=True, slots=True)
class Redirect:
    """The client address of the node that leads the device's group."""

    host: str
    port: int


@dataclass(slots=True)
class TextRow:
    """One row whose values came as text; types are those of the series, or inferred.

    `types[i]` names the type that the client gave for value i, where it gave one (typed and untyped values in one
    record); `types` is None where it gave none at all.
    """

    device: str
    measurements: tuple[str, ...]
    values: list[str]
    time: int
    types: tuple[DataType | None, ...] | None = None


@dataclass(slots=True)
class SeriesRequest:
    """A series to create. Codes are the client's numbers, not yet known to be valid."""

    path: str
    type: int
    encoding: int
    compressor: int
    props: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None
    attributes: Mapping[str, str] | None = None
    alias: str | None = None


@dataclass(slots=True)
class TemplateRequest:
    """A schema template of 0.12: entry i is a schema name with its measurements (more than one: a vector) and types."""

    name: str
    schema_names: list[str]
    measurements: list[list[str]]
    types: list[list[int]]
    encodings: list[list[int]]
    compressors: list[int]


@dataclass(frozen=True, slots=True)
class ServerProperties:
    version: str
    timestamp_precision: str = "ms"
    aggregations: tuple[str, ...] = ("max_time", "min_time")
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ResultHeader:
    """What a result set looks like.

    `columns` and `types` are parallel, in select order, duplicates kept, Time never among them. Rows carry each
    *distinct* name once, in the order of `name_index` (name -> position), or, where that is None, of first occurrence.
    `ignore_time` None leaves the field unset. `non_align`: the result of DISABLE ALIGN, read by `fetch_columns`.
    """

    columns: Sequence[str]
    types: Sequence[DataType]
    ignore_time: bool | None
    operation: str
    name_index: Mapping[str, int] | None = None
    non_align: bool = False

    def width(self) -> int:
        """How many columns the rows have."""
        return len(set(self.columns)) if self.name_index is None else len(self.name_index)


@dataclass(frozen=True, slots=True)
class Done:
    """A statement without a result set succeeded, and there is something to say about it."""

    message: str


class ResultSet(Protocol):
    """An open query. One call at a time; `close` may be called twice, and after a failure."""

    @property
    def header(self) -> ResultHeader: ...

    @property
    def done(self) -> bool:
        """True once the last row was given (may stay False until a fetch gave None)."""
        ...

    async def fetch(self, rows: int) -> RowBatch | None:
        """At most `rows` next rows of an aligned result, possibly fewer; None: no more."""
        ...

    async def fetch_columns(self, rows: int) -> list[tuple[Int64Array, Column]] | None:
        """At most `rows` next points of each series (DISABLE ALIGN), every series at its place; None: no more."""
        ...

    async def close(self) -> None: ...


class ClientHandler(Protocol):
    """The node behind the client service."""

    def properties(self) -> ServerProperties: ...

    def query_timeout_ms(self) -> int:
        """Of a query whose client names none."""
        ...

    def cancel(self, query_id: int) -> None:
        """End a query of this node at once, if it runs or is open: its call fails."""
        ...

    async def login(self, user: str, password: str) -> None:
        """Return if the password is right; CallerError(WRONG_LOGIN_PASSWORD) otherwise."""
        ...

    async def close_session(self, session: Session) -> None:
        """The session ended (logout or disconnect); its result sets were closed before."""
        ...

    async def execute(
        self,
        session: Session,
        statement: str,
        kind: StatementKind,
        *,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet | Done | None:
        """Run a statement; Done or None: there is no result set.

        A statement that is not of `kind` is refused with code 400 ("Statement is not a query statement." or
        "Statement is a query statement."). `query_id` is the number that the client knows the query by.
        """
        ...

    async def execute_batch(self, session: Session, statements: Sequence[str]) -> Sequence[CallerError | None]:
        """Run each; the outcomes in the same order. A failure does not stop the rest."""
        ...

    async def insert(self, session: Session, blocks: Sequence[Block], kind: InsertKind) -> Redirect | None:
        """Write blocks, each of at least one row, in the client's order (a later one wins over an equal time).

        A CallerError may have `parts`: one entry a row for TABLET, one a block for TABLETS, and one a row, over
        all blocks one after another, for the record kinds. Without parts the whole call failed.
        """
        ...

    async def insert_text(self, session: Session, rows: Sequence[TextRow], kind: InsertKind) -> Redirect | None:
        """Write rows given as text. A CallerError may have `parts`: one entry a row."""
        ...

    async def raw_query(
        self,
        session: Session,
        paths: Sequence[str],
        start: int,
        end_exclusive: int,
        *,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet:
        """A raw query of these paths in start <= time < end_exclusive."""
        ...

    async def create_timeseries(self, session: Session, specs: Sequence[SeriesRequest], multi: bool) -> None:
        """Create series; with `multi` a CallerError may have `parts`, one a series."""
        ...

    async def delete_timeseries(self, session: Session, paths: Sequence[str]) -> None:
        """Delete series by path or pattern; a CallerError may have `parts`, one a path."""
        ...

    async def set_storage_group(self, session: Session, path: str) -> None: ...

    async def delete_storage_groups(self, session: Session, paths: Sequence[str]) -> None: ...

    async def delete_data(self, session: Session, paths: Sequence[str], start: int, end: int) -> None:
        """Delete points with start <= time <= end; start > end deletes nothing and is no error."""
        ...

    async def metadata(self, session: Session, kind: MetadataKind, column_path: str) -> str | Sequence[str]:
        """METADATA_IN_JSON: the whole text; COLUMN: the type's name; ALL_COLUMNS: the full paths."""
        ...

    async def create_template(self, session: Session, template: TemplateRequest) -> None: ...

    async def set_template(self, session: Session, name: str, path: str) -> None: ...
