"""What the payload of a log entry is, in a few words, for the log viewer."""

from __future__ import annotations

from iotdb_cluster.data import Kind, decode_header, decode_insert
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.packing import unpack

__all__ = ["entry_text"]


def entry_text(payload: bytes) -> str:
    """One line: of a data group's entry or a meta command; what cannot be read is told as that."""
    try:
        kind, header = decode_header(payload)
        text = f"{kind.name.lower().replace('_', ' ')} of storage group {header.storage_group}"
        if kind is Kind.INSERT:
            blocks = decode_insert(payload)
            rows = sum(map(len, blocks))
            text += f" partition {header.partition}: {rows} rows of {', '.join(sorted({b.device for b in blocks})[:3])}"
        request = header.request
        return text + (f", request {request.node}/{request.start}/{request.sequence}" if request.node else "")
    except (CorruptData, ValueError):
        pass
    try:
        head, _ = unpack(payload)
    except (CorruptData, ValueError):
        return "of a kind that this program does not know"
    return f"meta command {head['kind']}" if isinstance(head, dict) and "kind" in head else "meta command"
