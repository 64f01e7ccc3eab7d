"""Frames on a stream: a 4 byte big-endian length and so many bytes, in each direction.

A whole frame is one object, its length in front (so the message begins at offset 4). Where a read brought exactly one
frame, that is the very object that was read.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

from iotdb_cluster.limits import RECEIVE_BYTES_MAX
from iotdb_cluster.rpc.wire import Buffer

__all__ = ["HEAD_BYTES", "Frames", "ReceiveBudget", "framed"]

HEAD_BYTES = 4
_LENGTH = struct.Struct(">I")
_unpack = _LENGTH.unpack_from


def framed(*parts: bytes | bytearray | memoryview) -> bytes:
    """The parts as one frame."""
    return b"".join((_LENGTH.pack(sum(map(len, parts))), *parts))


class ReceiveBudget:
    """Bytes of incomplete frames over all connections that share it."""

    def __init__(self, bytes_max: int = RECEIVE_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.used = 0


class Frames(asyncio.Protocol):
    """One connection. A subclass says what to do with a frame (`frame_received`) and when it ended (`ended`).

    Lengths beyond `frame_bytes_max`, which a subclass may change at any time, end the connection.
    """

    frame_bytes_max: int
    transport: asyncio.Transport

    def __init__(self, frame_bytes_max: int, output_bytes_max: int, budget: ReceiveBudget) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.closed = False
        self.sent_bytes = 0  # handed to the transport
        self.received_bytes = 0
        self._output_bytes_max = output_bytes_max
        self._budget = budget
        self._partial = bytearray()
        self._reading = True
        self._writable: asyncio.Future[None] | None = None

    # what a subclass does

    def opened(self) -> None:
        """The connection stands."""

    def frame_received(self, frame: Buffer) -> None:
        """A whole frame, its message from offset HEAD_BYTES on."""
        raise NotImplementedError

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""

    def violated(self, reason: str) -> None:
        """The other side broke the framing; the connection is being ended."""

    # what it may call

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Write a frame; nothing happens on a connection that is gone."""
        if not self.closed:
            frame = framed(*parts)
            self.sent_bytes += len(frame)
            self.transport.write(frame)

    @property
    def stalled(self) -> bool:
        """Whether more than `output_bytes_max` bytes are unsent."""
        return self._writable is not None

    async def drained(self) -> None:
        """Wait while more than `output_bytes_max` bytes are unsent; returns at once when the connection is gone."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Read nothing more from the socket for now."""
        if self._reading and not self.closed:
            self._reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self._reading and not self.closed:
            self._reading = True
            self.transport.resume_reading()

    def end(self, reason: str) -> None:
        """Break the connection because the other side broke the rules."""
        if not self.closed:
            self.closed = True
            self.violated(reason)
            self.transport.abort()

    # what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self._output_bytes_max)
        self.opened()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._budget.used -= len(self._partial)
        self._partial = bytearray()
        self.resume_writing()
        self.ended(exc)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        at = 0
        if not self._partial:
            at = self._take_whole(data)
            if at == len(data) or self.closed:
                return
        self._take_rest(data, at)

    def _take_whole(self, data: bytes) -> int:
        """Hand over the whole frames at the start of the data; the offset behind them."""
        at, end = 0, len(data)
        while end - at >= HEAD_BYTES:
            stop = at + HEAD_BYTES + _unpack(data, at)[0]
            if stop - at - HEAD_BYTES > self.frame_bytes_max:
                self._too_long(stop - at - HEAD_BYTES)
                return end
            if stop > end:
                break
            self.frame_received(data if stop - at == end else data[at:stop])
            if self.closed:
                return end
            at = stop
        return at

    def _take_rest(self, data: bytes, at: int) -> None:
        """Go on with the incomplete frame, from that offset of the data."""
        while at < len(data) and not self.closed:
            partial = self._partial
            need = HEAD_BYTES if len(partial) < HEAD_BYTES else HEAD_BYTES + _unpack(partial)[0]
            stop = min(len(data), at + need - len(partial))
            partial += data[at:stop]
            self._budget.used += stop - at
            at = stop
            if len(partial) < HEAD_BYTES:
                return
            (length,) = _unpack(partial)
            if length > self.frame_bytes_max:
                self._too_long(length)
            elif len(partial) == HEAD_BYTES + length:
                self._budget.used -= len(partial)
                self._partial = bytearray()
                self.frame_received(partial)
                if not self.closed and at < len(data):
                    data = data[at:]
                    at = self._take_whole(data)
            elif self._budget.used > self._budget.bytes_max:
                self.end(f"incomplete frames of all connections have {self._budget.used} bytes")

    def _too_long(self, length: int) -> None:
        signed = length - (1 << 32) if length >= 1 << 31 else length
        self.end(f"a frame says that it has {signed} bytes, at most {self.frame_bytes_max} are taken here")
