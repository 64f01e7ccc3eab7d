"""The entries of a data group's log, format version 1.

Every entry starts with the same header of 56 bytes, big-endian:

    u8 version, u8 kind, u16 slot, u32 node, u32 start, u64 sequence, u64 low,
    u64 storage-group id, u32 slot epoch, u64 schema epoch, i64 time partition

(node, start, sequence, low) is the identity of the request. INSERT, ENSURE_SERIES, CREATE_SERIES, ALTER_SERIES,
DELETE_INTENT and EXPIRE need one; the others are harmless when they come twice and take `NO_REQUEST` too. `slot` and
`slot epoch` say under which decision of meta the sender believes this group to own the slot. `schema epoch` is the
lowest one under which any series of the entry was resolved.

The body of an INSERT is binary (`blocks.py`), that of every other kind is a JSON head made by `packing.pack`, of one of
the dataclasses below; those of slots that move are in `moves.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, TypeAlias

from iotdb_cluster.columns import Block, Compressor, DataType, Encoding
from iotdb_cluster.data.blocks import decode_blocks, encode_blocks
from iotdb_cluster.data.fields import count, field_of, items, path_of, text, texts, time, within
from iotdb_cluster.data.kinds import Kind
from iotdb_cluster.data.moves import Discard, Dissolve, DropSlots, Fence, Import, Own, Ready
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import INT64_MAX, INT64_MIN, SLOTS
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import Alter, PathPattern, SeriesSpec

__all__ = [
    "HEADER_BYTES",
    "NO_REQUEST",
    "VERSION",
    "AlterSeries",
    "Body",
    "CreateSeries",
    "DeleteIntent",
    "DeleteRetire",
    "DeleteUnit",
    "Discard",
    "Dissolve",
    "DropSlots",
    "DropStorageGroup",
    "EnsureSeries",
    "Entry",
    "Expire",
    "Fence",
    "Header",
    "Import",
    "IntentKind",
    "Kind",
    "ListPartition",
    "OpenUnit",
    "Own",
    "Ready",
    "SeriesSpec",
    "decode",
    "decode_body",
    "decode_header",
    "decode_insert",
    "encode",
    "encode_insert",
]

VERSION = 1
_HEADER = struct.Struct(">BBHIIQQQIQq")
HEADER_BYTES = _HEADER.size


class Header(NamedTuple):
    """The head of an entry; `request` is `NO_REQUEST` where the entry needs no identity."""

    request: RequestId
    storage_group: int = 0
    slot: int = 0
    slot_epoch: int = 0
    schema_epoch: int = 0
    partition: int = 0


# --- bodies -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnsureSeries:
    """Create what does not exist of these series; the answer is what exists then, so the loser of a race sees it.

    `storage_group` is the path of the header's storage group; so it is in `CreateSeries`.
    """

    kind: ClassVar[Kind] = Kind.ENSURE_SERIES
    storage_group: str
    series: tuple[SeriesSpec, ...]

    def to_json(self) -> Any:
        return {"path": self.storage_group, "series": [spec.to_json() for spec in self.series]}

    @classmethod
    def from_json(cls, value: Any) -> EnsureSeries:
        return cls(path_of(field_of(value, "path")), tuple(map(_spec, items(field_of(value, "series")))))


@dataclass(frozen=True, slots=True)
class CreateSeries:
    """Create these series; each has an outcome of its own, those that exist already fail."""

    kind: ClassVar[Kind] = Kind.CREATE_SERIES
    storage_group: str
    series: tuple[SeriesSpec, ...]

    def to_json(self) -> Any:
        return {"path": self.storage_group, "series": [spec.to_json() for spec in self.series]}

    @classmethod
    def from_json(cls, value: Any) -> CreateSeries:
        return cls(path_of(field_of(value, "path")), tuple(map(_spec, items(field_of(value, "series")))))


@dataclass(frozen=True, slots=True)
class AlterSeries:
    """Change a series' tags, attributes or alias."""

    kind: ClassVar[Kind] = Kind.ALTER_SERIES
    path: str
    change: Alter

    def to_json(self) -> Any:
        return {"path": self.path, "change": self.change.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> AlterSeries:
        change = field_of(value, "change")
        alias = field_of(change, "alias")
        parsed = Alter(
            text(field_of(change, "action")),
            tuple(map(text, items(field_of(change, "keys")))),
            texts(field_of(change, "values")),
            texts(field_of(change, "tags")),
            texts(field_of(change, "attributes")),
            None if alias is None else text(alias),
        )
        if parsed.action == "rename" and len(parsed.keys) != 2:
            raise CorruptData("an entry renames a tag without naming both keys")
        return cls(text(field_of(value, "path")), parsed)


@dataclass(frozen=True, slots=True)
class ListPartition:
    """List the header's partition in the directory of the schema slot; `slot` is the partition's own.

    Answered with the (floor, last intent) under which the unit is to be opened, always those of the first listing.
    """

    kind: ClassVar[Kind] = Kind.LIST_PARTITION
    slot: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ListPartition:
        return cls(within(field_of(value, "slot"), 0, SLOTS - 1))


@dataclass(frozen=True, slots=True)
class OpenUnit:
    """Open the unit of the header's (storage group, partition) with what the schema slot answered to its listing."""

    kind: ClassVar[Kind] = Kind.OPEN_UNIT
    floor: int
    last_intent: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> OpenUnit:
        return cls(count(field_of(value, "floor")), count(field_of(value, "last_intent")))


class IntentKind(IntEnum):
    """TIMESERIES deletes the series with all their points, RANGE the points of [low, high]."""

    TIMESERIES = 1
    RANGE = 2


@dataclass(frozen=True, slots=True)
class DeleteIntent:
    """Begin a delete, in the schema slot. Times are inclusive; so are `first` and `last`, the partitions concerned.

    A delete of TIMESERIES concerns all partitions and times.
    """

    kind: ClassVar[Kind] = Kind.DELETE_INTENT
    intent: IntentKind
    patterns: tuple[PathPattern, ...]
    low: int = INT64_MIN
    high: int = INT64_MAX
    first: int = INT64_MIN
    last: int = INT64_MAX

    def to_json(self) -> Any:
        patterns = [[list(pattern.nodes), int(pattern.below), int(pattern.prefix_stars)] for pattern in self.patterns]
        return [int(self.intent), patterns, self.low, self.high, self.first, self.last]

    @classmethod
    def from_json(cls, value: Any) -> DeleteIntent:
        try:
            intent, patterns, low, high, first, last = value
            known = IntentKind(intent)
            parsed = []
            for nodes, below, prefix_stars in items(patterns):
                parsed.append(PathPattern(tuple(map(text, items(nodes))), bool(below), bool(prefix_stars)))
        except (TypeError, ValueError) as error:
            raise CorruptData(f"a delete in an entry cannot be read: {error}") from None
        return cls(known, tuple(parsed), time(low), time(high), time(first), time(last))


@dataclass(frozen=True, slots=True)
class DeleteUnit:
    """Intent `number` reaches the unit of the header; it is taken only where the unit's last one is `previous`.

    `previous` is the intent before it that concerns this partition. A unit that has `number` or a later one answers
    done; one that has not `previous` yet refuses. A unit that is not open is opened first, with what its listing says.
    """

    kind: ClassVar[Kind] = Kind.DELETE_UNIT
    number: int
    previous: int
    delete: DeleteIntent
    opening: OpenUnit

    def to_json(self) -> Any:
        return [self.number, self.previous, self.delete.to_json(), self.opening.to_json()]

    @classmethod
    def from_json(cls, value: Any) -> DeleteUnit:
        try:
            number, previous, delete, opening = value
        except (TypeError, ValueError) as error:
            raise CorruptData(f"a unit's delete in an entry cannot be read: {error}") from None
        return cls(count(number), count(previous), DeleteIntent.from_json(delete), OpenUnit.from_json(opening))


@dataclass(frozen=True, slots=True)
class DeleteRetire:
    """Every listed partition that intent `number` concerns has it: the names are free, the delete is acknowledged."""

    kind: ClassVar[Kind] = Kind.DELETE_RETIRE
    number: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> DeleteRetire:
        return cls(count(field_of(value, "number")))


@dataclass(frozen=True, slots=True)
class DropStorageGroup:
    """Meta dropped the header's storage group: its schema and units here go, and its id is refused for ever."""

    kind: ClassVar[Kind] = Kind.DROP_STORAGE_GROUP
    meta_index: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> DropStorageGroup:
        return cls(count(field_of(value, "meta_index")))


@dataclass(frozen=True, slots=True)
class Expire:
    """Delete every point of the header's storage group with time < `before` that stands in this group's log so far."""

    kind: ClassVar[Kind] = Kind.EXPIRE
    before: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Expire:
        return cls(time(field_of(value, "before")))


Body: TypeAlias = (
    EnsureSeries
    | CreateSeries
    | AlterSeries
    | ListPartition
    | OpenUnit
    | DeleteIntent
    | DeleteUnit
    | DeleteRetire
    | DropStorageGroup
    | Expire
    | Own
    | Fence
    | Import
    | Ready
    | DropSlots
    | Discard
    | Dissolve
)
_BODIES: dict[Kind, Callable[[Any], Body]] = {
    Kind.ENSURE_SERIES: EnsureSeries.from_json,
    Kind.CREATE_SERIES: CreateSeries.from_json,
    Kind.ALTER_SERIES: AlterSeries.from_json,
    Kind.LIST_PARTITION: ListPartition.from_json,
    Kind.OPEN_UNIT: OpenUnit.from_json,
    Kind.DELETE_INTENT: DeleteIntent.from_json,
    Kind.DELETE_UNIT: DeleteUnit.from_json,
    Kind.DELETE_RETIRE: DeleteRetire.from_json,
    Kind.DROP_STORAGE_GROUP: DropStorageGroup.from_json,
    Kind.EXPIRE: Expire.from_json,
    Kind.OWN: Own.from_json,
    Kind.FENCE: Fence.from_json,
    Kind.READY: Ready.from_json,
    Kind.DROP_SLOTS: DropSlots.from_json,
    Kind.DISCARD: Discard.from_json,
    Kind.DISSOLVE: Dissolve.from_json,
}


def _spec(value: Any) -> SeriesSpec:
    try:
        path, kind, encoding, compressor, *rest = value
        plain = SeriesSpec(text(path), DataType(kind), Encoding(encoding), Compressor(compressor))
        if not rest:
            return plain
        alias, tags, attributes, properties = rest
        return SeriesSpec(
            plain.path,
            plain.type,
            plain.encoding,
            plain.compressor,
            None if alias is None else text(alias),
            texts(tags),
            texts(attributes),
            texts(properties),
        )
    except (TypeError, ValueError) as error:
        raise CorruptData(f"a series in an entry cannot be read: {error}") from None


# --- bytes ------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A decoded entry: `blocks` of an INSERT, `body` of any other kind."""

    kind: Kind
    header: Header
    blocks: list[Block]
    body: Body | None


def _head(kind: int, header: Header) -> bytes:
    (node, start, sequence, low), storage_group, slot, slot_epoch, schema_epoch, partition = header
    return _HEADER.pack(
        VERSION, kind, slot, node, start, sequence, low, storage_group, slot_epoch, schema_epoch, partition
    )


def encode_insert(header: Header, blocks: Sequence[Block]) -> bytes:
    """An INSERT: the header, then the blocks (see `blocks.py`); every buffer is copied once, by the final join."""
    parts: list[Any] = [_head(Kind.INSERT, header)]
    encode_blocks(blocks, parts)
    return b"".join(parts)


def encode(header: Header, body: Body) -> bytes:
    """An entry of any kind but INSERT."""
    return _head(body.kind, header) + pack(body.to_json(), (body.data,) if isinstance(body, Import) else ())


def decode_header(payload: bytes) -> tuple[Kind, Header]:
    """The kind and the header; CorruptData where the entry is too short, or newer than this program."""
    if len(payload) < HEADER_BYTES:
        raise CorruptData(f"a data entry of {len(payload)} bytes is shorter than its header")
    head = _HEADER.unpack_from(payload)
    version, kind, slot, node, start, sequence, low, storage_group, slot_epoch, schema_epoch, partition = head
    if version != VERSION:
        raise CorruptData(f"a data entry has version {version}, this program knows {VERSION}")
    known = _KINDS.get(kind)
    if known is None:
        raise CorruptData(f"a data entry is of kind {kind}, which this program does not know")
    request = RequestId(node, start, sequence, low)
    return known, Header(request, storage_group, slot, slot_epoch, schema_epoch, partition)


_KINDS = {int(kind): kind for kind in Kind}


def decode_insert(payload: bytes, strict: bool = False) -> list[Block]:
    """The blocks of an INSERT: their arrays are views on `payload`. `strict`: also look at each boolean and text.

    CorruptData where lengths do not fit, or a name is not UTF-8.
    """
    return decode_blocks(payload, HEADER_BYTES, strict)


def decode_body(kind: Kind, payload: bytes) -> Body:
    """The body of any kind but INSERT; CorruptData where it cannot be read."""
    try:
        value, buffers = unpack(memoryview(payload)[HEADER_BYTES:])
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"the body of a data entry of kind {kind.name} is no JSON: {error}") from None
    return Import.from_json(value, buffers) if kind is Kind.IMPORT else _BODIES[kind](value)


def decode(payload: bytes, strict: bool = False) -> Entry:
    """A whole entry; CorruptData as in `decode_header`, `decode_insert` and `decode_body`."""
    kind, header = decode_header(payload)
    if kind is Kind.INSERT:
        return Entry(kind, header, decode_insert(payload, strict), None)
    return Entry(kind, header, [], decode_body(kind, payload))
