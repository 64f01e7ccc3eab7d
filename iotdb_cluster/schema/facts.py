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
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import crc32c
import numpy as np

from iotdb_cluster import packing
from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.schema.paths import split_device

__all__ = ["Facts", "dump_tree", "load_tree"]

_MAGIC = b"TREE"
_VERSION = 1
_ENVELOPE = struct.Struct(">4sBI")

Pairs = tuple[tuple[str, str], ...]


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


def _facts(declaration: str) -> Facts:
    kind, encoding, compressor, *rest = json.loads(declaration)
    alias, *pairs = rest or (None, (), (), ())
    tags, attributes, properties = (tuple((key, value) for key, value in items) for items in pairs)
    return Facts(DataType(kind), Encoding(encoding), Compressor(compressor), alias, tags, attributes, properties)


def dump_tree(storage_group: str, series: Iterable[tuple[str, Facts]]) -> bytes:
    """`series`: (path, facts) in the order of the paths."""
    devices: dict[str, list[tuple[str, str]]] = {}
    declared: dict[Facts, str] = {}
    for path, facts in series:
        device, name = split_device(path)
        text = declared.get(facts)
        if text is None:
            text = declared[facts] = _declaration(facts)
        devices.setdefault(device, []).append((name, text))
    names = sorted({name for items in devices.values() for name, _ in items})
    texts = sorted(declared.values())
    name_at = {name: at for at, name in enumerate(names)}
    text_at = {text: at for at, text in enumerate(texts)}
    head = {"storage_group": storage_group, "devices": list(devices), "names": names, "facts": texts}
    buffers = [
        np.array([len(items) for items in devices.values()], "<u4").tobytes(),
        np.array([name_at[name] for items in devices.values() for name, _ in items], "<u4").tobytes(),
        np.array([text_at[text] for items in devices.values() for _, text in items], "<u4").tobytes(),
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
    names, facts = head["names"], [_facts(text) for text in head["facts"]]
    counts, name_at, fact_at = (np.frombuffer(buffer, "<u4").tolist() for buffer in buffers)
    at = 0
    for device, count in zip(head["devices"], counts, strict=True):
        for place in range(at, at + count):
            yield device, names[name_at[place]], facts[fact_at[place]]
        at += count
