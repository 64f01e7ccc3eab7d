"""What the tree remembers of a series, and the bytes of a whole tree in a checkpoint.

Envelope, big-endian: "TREE", u8 version (1), u32 CRC32C of the rest; then a packed message (`packing`) with the head
{"storage_group", "devices": [path ...], "names": [measurement ...], "facts": [declaration ...]} and three buffers of
little-endian u32: for each device how many series it has, and for each series in that order its index in `names` and
in `facts`. Names and declarations stand once each, sorted; devices in the order of their first series' path, the series
of a device in the order of their paths.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from sys import intern
from typing import Any, NamedTuple

import crc32c
import numpy as np

from iotdb_cluster import packing
from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CorruptData

__all__ = ["Facts", "dump_devices", "load_tree"]

_MAGIC = b"TREE"
_VERSION = 1
_ENVELOPE = struct.Struct(">4sBI")

Pairs = tuple[tuple[str, str], ...]
PARSED_TOGETHER = 10_000  # declarations
_TYPES = {int(one): one for one in DataType}
_ENCODINGS = {int(one): one for one in Encoding}
_COMPRESSORS = {int(one): one for one in Compressor}


class Facts(NamedTuple):
    """What is declared of a series; tags, attributes and properties as sorted pairs."""

    type: DataType
    encoding: Encoding
    compressor: Compressor
    alias: str | None = None
    tags: Pairs = ()
    attributes: Pairs = ()
    properties: Pairs = ()

    @property
    def plain(self) -> bool:
        """Nothing but type, encoding and compressor is declared."""
        return self.alias is None and not (self.tags or self.attributes or self.properties)


def _declaration(facts: Facts) -> str:
    """As JSON text, which also gives them an order."""
    items: list[Any] = [int(facts.type), int(facts.encoding), int(facts.compressor)]
    if not facts.plain:
        items += [facts.alias, facts.tags, facts.attributes, facts.properties]
    return json.dumps(items, separators=(",", ":"), ensure_ascii=False)


def _facts(declarations: list[str]) -> Iterator[Facts]:
    """Many at a time: one call of the parser for each costs more than the rest."""
    declarations.reverse()
    while declarations:  # the texts go as their facts come: a million of both would not fit
        some = declarations[: -PARSED_TOGETHER - 1 : -1]
        del declarations[-PARSED_TOGETHER:]
        shared: dict[Pairs, Pairs] = {}
        for kind, encoding, compressor, *rest in json.loads(f"[{','.join(some)}]"):
            alias, *lists = rest or (None, (), (), ())
            pairs = (tuple([(intern(key), value) for key, value in items]) for items in lists)
            tags, attributes, properties = (shared.setdefault(one, one) for one in pairs)
            yield Facts(
                _TYPES[kind], _ENCODINGS[encoding], _COMPRESSORS[compressor], alias, tags, attributes, properties
            )


def dump_devices(storage_group: str, devices: Sequence[tuple[str, list[str], list[Facts]]]) -> bytes:
    """`devices`: (path, names of its series, sorted, their facts) in the order of their first series' path."""
    declared: dict[Facts, str] = {}
    for _, _, facts in devices:
        for one in facts:
            if one not in declared:
                declared[one] = _declaration(one)
    names = sorted({name for _, own, _ in devices for name in own})
    texts = sorted(declared.values())
    name_at = {name: at for at, name in enumerate(names)}
    text_at = {text: at for at, text in enumerate(texts)}
    head = {"storage_group": storage_group, "devices": [path for path, *_ in devices], "names": names, "facts": texts}
    buffers = [
        np.array([len(own) for _, own, _ in devices], "<u4").tobytes(),
        np.array([name_at[name] for _, own, _ in devices for name in own], "<u4").tobytes(),
        np.array([text_at[declared[one]] for _, _, facts in devices for one in facts], "<u4").tobytes(),
    ]
    body = packing.pack(head, buffers)
    return _ENVELOPE.pack(_MAGIC, _VERSION, crc32c.crc32c(body)) + body


def load_tree(data: bytes | memoryview) -> tuple[str, Iterator[tuple[str, str, Facts]]]:
    """(storage group, (device, measurement, facts) of each series).

    CorruptData where the bytes are damaged, or of a version that this program does not know.
    """
    if len(data) < _ENVELOPE.size:
        raise CorruptData(f"a schema checkpoint of {len(data)} bytes is too short")
    magic, version, checksum = _ENVELOPE.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptData(f"a schema checkpoint has version {version}, this program knows {_VERSION}")
    body = memoryview(data)[_ENVELOPE.size :]
    if crc32c.crc32c(body) != checksum:
        raise CorruptData("the checksum of a schema checkpoint does not match")
    head, buffers = packing.unpack(body)
    return head["storage_group"], _series(head, buffers)


def _series(head: Any, buffers: list[memoryview]) -> Iterator[tuple[str, str, Facts]]:
    names, facts = head["names"], list(_facts(head.pop("facts")))
    counts, name_at, fact_at = (np.frombuffer(buffer, "<u4").tolist() for buffer in buffers)
    at = 0
    for device, count in zip(head["devices"], counts, strict=True):
        for place in range(at, at + count):
            yield device, names[name_at[place]], facts[fact_at[place]]
        at += count
