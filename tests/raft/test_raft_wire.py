"""Messages and configuration entries as bytes: round trips, and bytes that no program of ours wrote."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import CorruptData, InvariantViolation
from iotdb_cluster.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfState,
    Entries,
    Message,
    MessageType,
    Snapshot,
    decode_conf_change,
    decode_message,
    encode_conf_change,
    encode_message,
)
from iotdb_cluster.raft.wire import _LOCAL_TYPES

u64 = st.integers(0, (1 << 64) - 1)
ids = st.lists(u64, max_size=5).map(tuple)
remote = st.sampled_from([kind for kind in MessageType if int(kind) not in _LOCAL_TYPES])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(remote)
    index = draw(st.integers(0, 1 << 60))
    payloads = draw(st.lists(st.binary(max_size=20), max_size=6))
    entries = Entries(
        index + 1 if payloads else 0,
        draw(st.lists(u64, min_size=len(payloads), max_size=len(payloads))),
        draw(st.lists(st.integers(0, 2), min_size=len(payloads), max_size=len(payloads))),
        payloads,
    )
    snapshot = st.builds(Snapshot, u64, u64, st.builds(ConfState, ids, ids, ids, ids, st.booleans()), st.binary())
    return Message(
        kind,
        draw(u64),
        draw(u64),
        draw(st.integers(1, (1 << 64) - 1)),
        draw(u64),
        index,
        draw(u64),
        draw(u64),
        draw(st.booleans()),
        draw(u64),
        draw(st.binary(max_size=30)),
        entries,
        draw(st.none() | snapshot),
    )


@settings(deadline=None)
@given(messages())
def test_round_trip(message: Message) -> None:
    assert decode_message(encode_message(message)) == message
    assert decode_message(memoryview(encode_message(message))) == message


@settings(deadline=None)
@given(messages(), st.data())
def test_cut_and_padded(message: Message, data: st.DataObject) -> None:
    frame = encode_message(message)
    with pytest.raises(CorruptData):
        decode_message(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(CorruptData):
        decode_message(frame + b"\0")


@settings(deadline=None)
@given(messages(), st.data())
def test_flipped_bytes_give_a_message_or_corrupt_data(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_message(frame)
    except CorruptData:
        return
    assert encode_message(decoded) == bytes(frame)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    for frame in (noise, b"\1\3" + noise):
        try:
            decode_message(frame)
        except CorruptData:
            continue


def test_absurd_counts_cost_nothing() -> None:
    frame = bytearray(encode_message(Message(MessageType.APP, 1, 2, 3)))
    frame[-4:] = struct.pack(">I", 0xFFFFFFFF)
    with pytest.raises(CorruptData):
        decode_message(frame)
    frame[-8:-4] = struct.pack(">I", 0xFFFFFFFF)
    with pytest.raises(CorruptData):
        decode_message(frame)


def test_entries_must_follow_the_index() -> None:
    message = Message(MessageType.APP, 1, 2, 3, index=7, entries=Entries(9, [1], [0], [b""]))
    with pytest.raises(CorruptData):
        decode_message(encode_message(message))


@pytest.mark.parametrize("kind", sorted(_LOCAL_TYPES))
def test_local_messages_do_not_travel(kind: int) -> None:
    with pytest.raises(InvariantViolation):
        encode_message(Message(MessageType(kind), 1, 2, 3))
    frame = bytearray(encode_message(Message(MessageType.APP, 1, 2, 3)))
    frame[1] = kind
    with pytest.raises(CorruptData):
        decode_message(frame)


def test_only_requests_have_no_term() -> None:
    decode_message(encode_message(Message(MessageType.READ_INDEX, 1, 2, context=b"x")))
    with pytest.raises(CorruptData):
        decode_message(encode_message(Message(MessageType.SNAP, 1, 2)))


changes = st.lists(st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), u64), max_size=5).map(tuple)


@settings(deadline=None)
@given(st.builds(ConfChange, changes, st.sampled_from(ConfChangeTransition), st.binary(max_size=9)))
def test_conf_changes(change: ConfChange) -> None:
    assert decode_conf_change(encode_conf_change(change)) == change


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_conf_change_noise(noise: bytes) -> None:
    for payload in (noise, b"\1" + noise):
        try:
            decode_conf_change(payload)
        except CorruptData:
            continue
