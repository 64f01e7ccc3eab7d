"""Failures over the wire between nodes: a caller's error arrives as the same class with the same numbers.

An answer is one byte, 0 and the answer's own bytes, or 1 and a packed failure.
"""

from __future__ import annotations

from typing import Any

from iotdb_cluster.data import NotReady, Retiring, StaleRequest
from iotdb_cluster.errors import CallerError, CorruptData, Moved, NotLeader, OutcomeUnknown, StaleSchema, Status
from iotdb_cluster.packing import pack, unpack

__all__ = ["answer_bytes", "dump_failure", "failure_bytes", "load_failure", "read_answer"]

_PLAIN: dict[str, type[Moved | StaleSchema | OutcomeUnknown | StaleRequest]] = {
    "moved": Moved,
    "stale schema": StaleSchema,
    "unknown": OutcomeUnknown,
    "stale request": StaleRequest,
}


def dump_failure(error: CallerError) -> dict[str, Any]:
    """JSON that `load_failure` makes the same failure of."""
    head: dict[str, Any] = {"class": "caller", "code": int(error.code), "message": error.message}
    for name, kind in _PLAIN.items():
        if type(error) is kind:
            head["class"] = name
    if isinstance(error, NotLeader):
        head.update({"class": "not leader", "leader": error.leader})
    elif isinstance(error, NotReady):
        head.update({"class": "not ready", "unit_closed": error.unit_closed})
    elif isinstance(error, Retiring):
        head.update({"class": "retiring", "number": error.number, "partitions": list(error.partitions)})
    if error.parts:
        head["parts"] = [None if part is None else dump_failure(part) for part in error.parts]
    return head


def load_failure(head: dict[str, Any]) -> CallerError:
    kind, message = head["class"], str(head["message"])
    if kind in _PLAIN:
        return _PLAIN[kind](message)
    if kind == "not leader":
        return NotLeader(int(head["leader"]), message)
    if kind == "not ready":
        return NotReady(message, bool(head["unit_closed"]))
    if kind == "retiring":
        return Retiring(message, int(head["number"]), tuple(head["partitions"]))
    parts = [None if part is None else load_failure(part) for part in head.get("parts", ())]
    return CallerError(Status(head["code"]), message, parts)


def answer_bytes(body: bytes) -> bytes:
    return b"\x00" + body


def failure_bytes(error: CallerError) -> bytes:
    return b"\x01" + pack(dump_failure(error))


def read_answer(data: bytes | memoryview) -> memoryview:
    """The answer's own bytes; raises the failure that it is."""
    view = memoryview(data)
    if not len(view) or view[0] > 1:
        raise CorruptData("an answer between nodes has neither the mark of success nor that of failure")
    if view[0] == 1:
        head, _ = unpack(view[1:])
        raise load_failure(head)
    return view[1:]
