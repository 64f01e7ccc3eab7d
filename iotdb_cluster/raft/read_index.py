"""Reads that wait until a majority has confirmed that their leader still leads."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from iotdb_cluster.raft.message import Message
from iotdb_cluster.raft.quorum import joint_committed_index

__all__ = ["ReadIndex"]

_POSITION = struct.Struct(">Q")


class ReadIndex:
    """Reads are counted from 1 in the order of their coming; a heartbeat names the newest one, and its answer confirms
    that one and all before it. So a read is confirmed only by a heartbeat that was sent after the read came."""

    __slots__ = ("acked", "confirmed", "waiting")

    def __init__(self) -> None:
        self.acked: dict[int, int] = {}
        self.confirmed = 0
        self.waiting: deque[tuple[Message, int]] = deque()

    def add(self, request: Message, commit: int) -> None:
        self.waiting.append((request, commit))

    def heartbeat_context(self) -> bytes:
        """What the next heartbeat carries; nothing where no read waits."""
        return _POSITION.pack(self.confirmed + len(self.waiting)) if self.waiting else b""

    def acknowledge(self, member: int, context: bytes) -> None:
        """`context` came back from `member`."""
        if len(context) == _POSITION.size:
            (position,) = _POSITION.unpack(context)
            if position > self.acked.get(member, 0):
                self.acked[member] = position

    def advance(self, incoming: Sequence[int], outgoing: Sequence[int]) -> list[tuple[Message, int]]:
        """The reads that are confirmed now, each with the commit index it has to wait for."""
        position = joint_committed_index(incoming, outgoing, self.acked)
        position = min(position, self.confirmed + len(self.waiting))
        done = [self.waiting.popleft() for _ in range(position - self.confirmed)]
        self.confirmed += len(done)
        return done
