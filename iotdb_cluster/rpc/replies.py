"""Statuses and reply messages of the client service."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from thriftpy2.thrift import TApplicationException

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.checker import encode
from iotdb_cluster.rpc.handler import Redirect
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.results import INLINE_COLUMNS_MAX
from iotdb_cluster.rpc.wire import Message, MessageKind, Wire

__all__ = [
    "EXECUTED",
    "INTERNAL_ERROR",
    "NOT_LOGGED_IN",
    "PROTOCOL_ERROR",
    "UNKNOWN_METHOD",
    "exception_reply",
    "is_wide",
    "part_statuses",
    "reply",
    "status",
    "status_of",
    "status_reply",
]

UNKNOWN_METHOD, INTERNAL_ERROR, PROTOCOL_ERROR = 1, 6, 7  # TApplicationException types
EXECUTED = "Execute successfully"
NOT_LOGGED_IN = "Log in failed. Either you are not authorized or the session has timed out."


def status(
    code: int, message: str | None = None, parts: list[Any] | None = None, redirect: Redirect | None = None
) -> Any:
    """A TSStatus."""
    idl = client()
    node = None if redirect is None else idl.EndPoint(redirect.host, redirect.port)
    return idl.TSStatus(int(code), message, parts, node)


def _plain(error: CallerError) -> Any:
    """Every failing status has a message: the Go client dereferences it."""
    return status(error.code, error.message or error.code.name)


def part_statuses(parts: Iterable[CallerError | None]) -> list[Any]:
    """A status a part, 200 where it succeeded."""
    return [status(Status.SUCCESS) if part is None else _plain(part) for part in parts]


def status_of(error: CallerError) -> Any:
    """506 with a status a part where the error has parts, else its own code."""
    if error.parts and any(part is not None for part in error.parts):
        return status(Status.MULTIPLE_ERROR, None, part_statuses(error.parts))
    return _plain(error)


def is_wide(success: Any) -> bool:
    """Whether encoding what a method returns may take milliseconds: blocks of thousands of columns."""
    for name in ("queryDataSet", "nonAlignQueryDataSet"):
        block = getattr(success, name, None)
        if block is not None and len(block.valueList) > INLINE_COLUMNS_MAX:
            return True
    return False


def reply(wire: Wire, message: Message, success: Any) -> bytes:
    """The answer to a call: `success` is what its method returns."""
    result = getattr(client().TSIService, message.name + "_result")(success)
    return wire.head(MessageKind.REPLY, message.name, message.seqid) + encode(wire, result)


@lru_cache(maxsize=1_024)
def _status_result(wire: Wire, code: int, message: str | None, redirect: Redirect | None, with_part: bool) -> bytes:
    parts = [status(Status.SUCCESS)] if with_part else None
    result = client().TSIService.insertRecord_result(status(code, message, parts, redirect))
    return encode(wire, result)


def status_reply(wire: Wire, message: Message, redirect: Redirect | None = None, *, with_part: bool = False) -> bytes:
    """Success of a method that returns a TSStatus, from remembered bytes; `with_part` adds one sub status 200."""
    body = _status_result(wire, int(Status.SUCCESS), EXECUTED, redirect, with_part)
    return wire.head(MessageKind.REPLY, message.name, message.seqid) + body


def exception_reply(wire: Wire, message: Message, kind: int, text: str) -> bytes:
    """A TApplicationException."""
    body = encode(wire, TApplicationException(kind, text))
    return wire.head(MessageKind.EXCEPTION, message.name, message.seqid) + body
