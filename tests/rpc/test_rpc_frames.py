from __future__ import annotations

import asyncio
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.rpc.frames import Frames, ReceiveBudget, framed

# ruff: noqa: ARG002


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Taker(Frames):
    def __init__(self, frame_bytes_max: int = 1000, budget: ReceiveBudget | None = None) -> None:
        super().__init__(frame_bytes_max, 1000, budget or ReceiveBudget())
        self.frames: list[bytes | bytearray] = []
        self.reasons: list[str] = []
        self.fake = FakeTransport()
        self.connection_made(self.fake)

    def frame_received(self, frame: bytes | bytearray) -> None:
        self.frames.append(frame)

    def violated(self, reason: str) -> None:
        self.reasons.append(reason)


@settings(max_examples=200, deadline=None)
@given(payloads=st.lists(st.binary(max_size=40), max_size=12), seed=st.integers(0, 10**6))
def test_frames_cut_anywhere(payloads: list[bytes], seed: int) -> None:
    source, taker = random.Random(seed), Taker()
    data = b"".join(framed(payload) for payload in payloads)
    at = 0
    while at < len(data):
        stop = at + source.choice((1, 2, 3, 5, 20, 60))
        taker.data_received(data[at:stop])
        at = stop
    assert [bytes(frame) for frame in taker.frames] == [framed(payload) for payload in payloads]
    assert taker._budget.used == 0
    assert taker.received_bytes == len(data)


def test_one_read_one_frame_is_not_copied() -> None:
    taker, data = Taker(), framed(b"x" * 500)
    taker.data_received(data)
    assert taker.frames[0] is data


@pytest.mark.parametrize("length", [1001, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_absurd_lengths_end_the_connection(length: int, cut: int) -> None:
    taker = Taker()
    data = framed(b"good") + struct.pack(">I", length) + b"more"
    taker.data_received(data[: 8 + cut])
    taker.data_received(data[8 + cut :])
    assert taker.fake.aborted
    assert [bytes(frame) for frame in taker.frames] == [framed(b"good")]
    (reason,) = taker.reasons
    assert str(length if length < 2**31 else length - 2**32) in reason


def test_nothing_more_is_taken_after_the_end() -> None:
    class Once(Taker):
        def frame_received(self, frame: bytes | bytearray) -> None:
            super().frame_received(frame)
            self.end("enough")

    taker = Once()
    taker.data_received(framed(b"a") + framed(b"b") + b"\0")
    assert len(taker.frames) == 1
    taker = Once()
    taker.data_received(framed(b"a")[:3])
    taker.data_received(framed(b"a")[3:] + framed(b"b"))
    assert len(taker.frames) == 1


def test_incomplete_frames_share_a_budget() -> None:
    budget = ReceiveBudget(1500)
    first, second = Taker(1000, budget), Taker(1000, budget)
    first.data_received(framed(b"x" * 1000)[:-1])
    second.data_received(framed(b"x" * 1000)[:-1])
    assert not first.fake.aborted
    assert second.fake.aborted
    second.connection_lost(None)
    assert budget.used == 1003
    first.data_received(b"x")
    assert (budget.used, len(first.frames)) == (0, 1)


async def test_waiting_for_a_slow_reader() -> None:
    taker = Taker()
    await taker.drained()
    taker.pause_writing()
    taker.pause_writing()
    waiting = asyncio.create_task(taker.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    taker.resume_writing()
    await waiting
    taker.pause_writing()
    waiting = asyncio.create_task(taker.drained())
    await asyncio.sleep(0)
    taker.connection_lost(None)
    await waiting


def test_pausing() -> None:
    taker = Taker()
    taker.pause()
    assert not taker.fake.reading
    taker.resume()
    assert taker.fake.reading
