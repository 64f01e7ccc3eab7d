"""The identity of a request, and the window by which a group applies each request at most once.

A late retry must not overwrite a newer acknowledged write. So every proposal carries a `RequestId`, and every group
keeps in its state, for each node that proposes, which ids it has applied. Nodes count their sequences up and say with
each request the lowest one that they have not answered (`low`): what lies below is never repeated and needs no memory.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from iotdb_cluster.errors import CallerError, OutcomeUnknown, check
from iotdb_cluster.limits import REQUESTS_AHEAD_MAX

__all__ = ["NO_REQUEST", "Admission", "RequestId", "RequestWindow", "refusal"]

_CHUNK_BITS = 1_024
_CHUNK_ALL = (1 << _CHUNK_BITS) - 1


class RequestId(NamedTuple):
    """`start` is counted up at each start of the node; `low <= sequence` is its lowest unanswered sequence then."""

    node: int
    start: int
    sequence: int
    low: int


NO_REQUEST = RequestId(0, 0, 0, 0)  # an entry that is harmless when applied twice: always admitted, never recorded


class Admission(Enum):
    """What a group's window says about an id."""

    NEW = "new"
    APPLIED = "applied"  # a repetition: do nothing; the answer is that of the first time
    OLD_START = "old start"  # the node has started anew since: nobody waits for the answer
    BELOW_LOW = "below low"  # the node has given up, or answered, this request
    TOO_FAR_AHEAD = "too far ahead"  # more than REQUESTS_AHEAD_MAX beyond its own low


class _Node:
    """What is known of one node: its newest start, the low, and the applied sequences at or above it."""

    __slots__ = ("chunks", "low", "start")

    def __init__(self, start: int, low: int) -> None:
        self.start = start
        self.low = low
        self.chunks: dict[int, int] = {}  # sequence // 1024 -> bitmap of 1024; nothing below low's chunk

    def has(self, sequence: int) -> bool:
        chunk, bit = divmod(sequence, _CHUNK_BITS)
        return bool(self.chunks.get(chunk, 0) >> bit & 1)

    def add(self, sequence: int) -> None:
        chunk, bit = divmod(sequence, _CHUNK_BITS)
        self.chunks[chunk] = self.chunks.get(chunk, 0) | 1 << bit

    def raise_low(self, low: int) -> None:
        if low <= self.low:
            return
        first = low // _CHUNK_BITS
        if first != self.low // _CHUNK_BITS:
            self.chunks = {chunk: bits for chunk, bits in self.chunks.items() if chunk >= first}
        self.low = low

    def canonical(self) -> list[tuple[int, int]]:
        """(chunk, bits) in order, without what lies below low."""
        first, bit = divmod(self.low, _CHUNK_BITS)
        found = []
        for chunk, bits in sorted(self.chunks.items()):
            above = bits & (_CHUNK_ALL << bit & _CHUNK_ALL) if chunk == first else bits
            if chunk >= first and above:
                found.append((chunk, above))
        return found


class RequestWindow:
    """The applied ids of one group. Part of its state: equal on all replicas at an equal log position.

    Memory: at most `REQUESTS_AHEAD_MAX` bits a node.
    """

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}

    def admit(self, request: RequestId) -> Admission:
        """Whether the request may take effect now. Changes nothing."""
        if request.node == 0:
            return Admission.NEW
        if not request.low <= request.sequence < request.low + REQUESTS_AHEAD_MAX:
            return Admission.TOO_FAR_AHEAD
        known = self._nodes.get(request.node)
        if known is None or request.start > known.start:
            return Admission.NEW
        if request.start < known.start:
            return Admission.OLD_START
        if request.sequence < known.low:
            return Admission.BELOW_LOW
        return Admission.APPLIED if known.has(request.sequence) else Admission.NEW

    def record(self, request: RequestId) -> None:
        """The request has its fate: it will not be admitted again. Only after `admit` said NEW."""
        if request.node == 0:
            return
        known = self._nodes.get(request.node)
        if known is None or request.start > known.start:
            known = self._nodes[request.node] = _Node(request.start, request.low)
        check(request.start == known.start, "a request of start %s is older than %s", request, known.start)
        known.raise_low(request.low)
        known.add(request.sequence)

    def low_of(self, node: int) -> tuple[int, int]:
        """(newest start, low) of the node; (0, 0) where it never proposed."""
        known = self._nodes.get(node)
        return (0, 0) if known is None else (known.start, known.low)

    def merge(self, other: RequestWindow) -> None:
        """Takes in what another group has applied, when a slot with its state comes from there.

        For each node the newest start wins; for equal starts the higher low, and the union above it.
        """
        for node, theirs in sorted(other._nodes.items()):
            mine = self._nodes.get(node)
            if mine is None or theirs.start > mine.start:
                mine = self._nodes[node] = _Node(theirs.start, theirs.low)
            elif theirs.start < mine.start:
                continue
            mine.raise_low(theirs.low)
            first = mine.low // _CHUNK_BITS
            for chunk, bits in theirs.chunks.items():
                if chunk >= first:
                    mine.chunks[chunk] = mine.chunks.get(chunk, 0) | bits

    def dump(self) -> list[Any]:
        """A value for JSON, equal for equal windows."""
        return [
            [node, known.start, known.low, [[chunk, f"{bits:x}"] for chunk, bits in known.canonical()]]
            for node, known in sorted(self._nodes.items())
        ]

    @classmethod
    def load(cls, dumped: list[Any]) -> RequestWindow:
        window = cls()
        for node, start, low, chunks in dumped:
            known = window._nodes[node] = _Node(start, low)
            known.chunks = {chunk: int(bits, 16) for chunk, bits in chunks}
        return window


def refusal(request: RequestId, admission: Admission) -> CallerError:
    """The answer to a request that was neither admitted nor applied before: the node has given it up."""
    return OutcomeUnknown(
        f"request {request.sequence} of start {request.start} of node {request.node} is refused: {admission.value}"
    )
