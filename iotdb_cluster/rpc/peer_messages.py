"""Messages between nodes, written and read by hand: their bodies are large, and stay views on their frame.

The bytes are those of `thrift/node.thrift` in the strict binary protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.errors import CallerError, Moved, NotLeader, OutcomeUnknown, StaleSchema, Status
from iotdb_cluster.rpc.checker import decode, encode
from iotdb_cluster.rpc.idl import node
from iotdb_cluster.rpc.wire import BINARY, I32, STOP, STRING, STRUCT, Buffer, Malformed, Message, MessageKind, guarded

__all__ = [
    "VERSION",
    "PeerIdentity",
    "call_parts",
    "failure_body",
    "hello_message",
    "raft_parts",
    "read_answer",
    "read_call",
    "read_hello",
    "read_raft",
    "success_parts",
]

VERSION = 1  # of node.thrift
Part = bytes | bytearray | memoryview
_LENGTH = struct.Struct(">I").pack
_ANSWER_SUCCESS = b"\x0c\x00\x00" + b"\x08\x00\x01" + struct.pack(">i", int(Status.SUCCESS)) + b"\x0b\x00\x03"
_STATUSES = {int(code): code for code in Status}


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end of a connection: `node` 0 has no identifier yet; `purpose` names the stream."""

    node: int
    incarnation: bytes
    purpose: str
    cluster: str = ""
    start: int = 0


def hello_message(identity: PeerIdentity, seqid: int) -> bytes:
    idl = node()
    hello = idl.Hello(
        version=VERSION,
        node=identity.node,
        incarnation=identity.incarnation,
        purpose=identity.purpose,
        cluster=identity.cluster,
        start=identity.start,
    )
    return BINARY.head(MessageKind.CALL, "hello", seqid) + encode(BINARY, idl.NodeService.hello_args(hello))


def read_hello(frame: Buffer, at: int) -> PeerIdentity:
    """CallerError where the other side speaks another version."""
    hello = decode(BINARY, node().NodeService.hello_args, frame, at).hello
    if hello.version != VERSION:
        raise CallerError(
            Status.INCOMPATIBLE_VERSION,
            f"a peer speaks version {hello.version} of the node protocol, this node {VERSION}",
        )
    return PeerIdentity(hello.node, hello.incarnation, hello.purpose, hello.cluster or "", hello.start or 0)


def raft_parts(batch: Part) -> tuple[Part, ...]:
    return (BINARY.head(MessageKind.ONEWAY, "raft", 0) + b"\x0b\x00\x01" + _LENGTH(len(batch)), batch, b"\x00")


def read_raft(frame: Buffer, at: int) -> memoryview:
    """The batch, a view on the frame."""
    fields = _strings(frame, at)
    if 1 not in fields:
        raise Malformed("raft comes without its batch")
    start, stop = fields[1]
    return memoryview(frame)[start:stop]


def call_parts(method: str, bodies: Sequence[Part], seqid: int) -> tuple[Part, ...]:
    name = method.encode()
    head = BINARY.head(MessageKind.CALL, "call", seqid) + b"\x0b\x00\x01" + _LENGTH(len(name)) + name
    return (head, b"\x0b\x00\x02" + _LENGTH(sum(map(len, bodies))), *bodies, b"\x00")


def read_call(frame: Buffer, at: int) -> tuple[str, memoryview]:
    """(method, body as a view on the frame)"""
    fields = _strings(frame, at)
    if 1 not in fields or 2 not in fields:
        raise Malformed("call comes without its method or body")
    start, stop = fields[1]
    method = guarded(lambda: frame[start:stop].decode())
    return method, memoryview(frame)[fields[2][0] : fields[2][1]]


def success_parts(message: Message, bodies: Sequence[Part]) -> tuple[Part, ...]:
    head = BINARY.head(MessageKind.REPLY, message.name, message.seqid)
    return (head + _ANSWER_SUCCESS + _LENGTH(sum(map(len, bodies))), *bodies, b"\x00\x00")


def failure_body(message: Message, error: CallerError) -> bytes:
    """The answer that raises an equal error at the caller: class, code, message, leader and parts."""
    idl = node()
    parts = None
    if error.parts:
        parts = [
            idl.Failure(int(Status.SUCCESS)) if part is None else idl.Failure(*_failure(part)) for part in error.parts
        ]
    code, text, kind, leader = _failure(error)
    answer = idl.Answer(code=code, message=text, kind=kind, leader=leader, parts=parts)
    result = getattr(idl.NodeService, message.name + "_result")(answer)
    return BINARY.head(MessageKind.REPLY, message.name, message.seqid) + encode(BINARY, result)


_KINDS: dict[int, type[CallerError]] = {2: Moved, 3: StaleSchema, 4: OutcomeUnknown}


def _failure(error: CallerError) -> tuple[int, str, int, int | None]:
    if isinstance(error, NotLeader):
        return int(error.code), error.message, 1, error.leader
    for kind, family in _KINDS.items():
        if isinstance(error, family):
            return int(error.code), error.message, kind, None
    return int(error.code), error.message, 0, None


def _error(code: int, text: str | None, kind: int | None, leader: int | None) -> CallerError:
    text = text or ""
    if kind == 1:
        return NotLeader(leader or 0, text)
    if kind == 2:
        return Moved(text)
    if kind == 3:
        return StaleSchema(text)
    if kind == 4:
        return OutcomeUnknown(text)
    return CallerError(_STATUSES.get(code, Status.INTERNAL_SERVER_ERROR), text)


def read_answer(frame: Buffer, message: Message) -> memoryview:
    """The body of a successful answer, a view on the frame; raises the error that the other side answered."""
    if message.kind == MessageKind.EXCEPTION:
        raise CallerError(Status.INTERNAL_SERVER_ERROR, "a peer did not understand a call")
    code, body = guarded(lambda: _walk_answer(frame, message.body))
    if code == Status.SUCCESS:
        start, stop = body
        return memoryview(frame)[start:stop]
    # the result struct's one field is the answer
    result: Any = decode(BINARY, node().NodeService.call_result, frame, message.body)
    answer = result.success
    error = _error(answer.code, answer.message, answer.kind, answer.leader)
    if answer.parts is not None:
        error.parts = tuple(
            None if part.code == Status.SUCCESS else _error(part.code, part.message, part.kind, part.leader)
            for part in answer.parts
        )
    raise error


def _walk_answer(frame: Buffer, at: int) -> tuple[int, tuple[int, int]]:
    """(code, where the body is) of an answer within its result struct."""
    kind, number, at = BINARY.field(frame, at, 0)
    if kind != STRUCT or number != 0:
        raise Malformed("an answer of a peer is empty")
    code, body = 0, (at, at)
    while True:
        kind, number, at = BINARY.field(frame, at, 0)
        if kind == STOP:
            return code, body
        if number == 1 and kind == I32:
            code, at = BINARY.i32(frame, at)
        elif number == 3 and kind == STRING:
            body, at = BINARY.blob(frame, at)
        else:
            at = BINARY.skip(frame, at, kind, 2)


def _strings(frame: Buffer, at: int) -> dict[int, tuple[int, int]]:
    """Where the string arguments of a message are, by number."""

    def walk() -> dict[int, tuple[int, int]]:
        place = at
        found: dict[int, tuple[int, int]] = {}
        while True:
            kind, number, place = BINARY.field(frame, place, 0)
            if kind == STOP:
                return found
            if kind == STRING:
                found[number], place = BINARY.blob(frame, place)
            else:
                place = BINARY.skip(frame, place, kind, 1)

    return guarded(walk)
