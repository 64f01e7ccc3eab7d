"""The client protocol from the other side: one connection, one session, calls by name.

Blocking, since its users wait for one answer at a time. A running query is cancelled from the same connection: the
server looks at what comes in behind the call that it answers.
"""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from thriftpy2.thrift import TApplicationException

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.limits import FRAME_BYTES_MAX
from iotdb_cluster.rpc.checker import decode, encode
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.wire import BINARY, COMPACT, Malformed, MessageKind, guarded

__all__ = ["Connection", "Disconnected", "PageColumn", "Refused", "ResultPage", "Results", "first_bad"]

CONNECT_TIMEOUT_S = 10.0
PROTOCOL_V3 = 2
GOOD = (200, 707)
RUNNING = 0  # instead of a query's number: whichever this connection waits for


class Disconnected(Exception):
    """The server is not there, or went away; the message says what happened."""


class Refused(Exception):
    """The server answered with a status that is no success."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def first_bad(status: Any) -> Any:
    """The status that counts as the call's, None where it succeeded."""
    if status.code in GOOD:
        return None
    return next((part for part in status.subStatus or () if part.code not in GOOD), status)


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A column as it is shown; `is_time`: INT64 times in the server's precision."""

    name: str
    cells: Column
    is_time: bool = False


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Some rows: the Time column first, where the result has one."""

    columns: list[PageColumn]
    rows: int


class Connection:
    """Raises Disconnected and Refused; KeyboardInterrupt only between two calls, or out of `call`."""

    def __init__(self, host: str, port: int, *, compact: bool = False) -> None:
        self.host = host
        self.port = port
        self._wire = COMPACT if compact else BINARY
        self._seqid = 0
        self.session = 0
        self.statement = 0
        self.fetch_rows = 1_000
        self.timeout_ms = 0
        try:
            self._socket = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise Disconnected(str(error)) from None
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns; TApplicationException where the server has no such method or broke on it."""
        try:
            self.send(method, *arguments)
            return self.receive(method)
        except KeyboardInterrupt:  # the answer may still come: it must not be taken for that of another call
            self.abandon()
            raise

    def send(self, method: str, *arguments: Any) -> None:
        """A call whose answer is to be fetched by `receive`, in order."""
        self._seqid += 1
        body = encode(self._wire, getattr(client().TSIService, f"{method}_args")(*arguments))
        frame = self._wire.head(MessageKind.CALL, method, self._seqid) + body
        try:
            self._socket.sendall(struct.pack(">i", len(frame)) + frame)
        except OSError as error:
            raise Disconnected(str(error)) from None

    def receive(self, method: str) -> Any:
        frame = self._frame()
        try:
            message = guarded(lambda: self._wire.message(frame, 0))
            if message.kind == MessageKind.EXCEPTION:
                raise decode(self._wire, TApplicationException, frame, message.body)
            declared: type[Any] = getattr(client().TSIService, f"{method}_result")
            return decode(self._wire, declared, frame, message.body).success
        except Malformed as error:
            raise Disconnected(f"the answer is not of the client protocol: {error}") from None

    def _frame(self) -> bytes:
        (length,) = struct.unpack(">i", self._exactly(4))
        if not 0 <= length <= FRAME_BYTES_MAX:
            raise Disconnected(f"a frame of {length} bytes is announced: this is no server of the client protocol")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._socket.recv(min(count, 1 << 20))
            except OSError as error:
                raise Disconnected(str(error)) from None
            if not part:
                raise Disconnected("the server has closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    # --- the session --------------------------------------------------------------------------------------------------

    def open(self, user: str, password: str, zone: str) -> None:
        request = client().TSOpenSessionReq(PROTOCOL_V3, zone, user, password)
        answer = self.call("openSession", request)
        _require(answer.status)
        self.session = answer.sessionId
        self.statement = self.call("requestStatementId", self.session)

    def close(self) -> None:
        """Log out, if the server still listens; never raises."""
        try:
            if self.session:
                self.call("closeSession", client().TSCloseSessionReq(self.session))
        except Disconnected:
            self.session = 0
        finally:
            self._socket.close()

    def abandon(self) -> None:
        """Close without a word: the other side is not there, or out of step."""
        self._socket.close()

    def properties(self) -> Any:
        return self.call("getProperties")

    def set_zone(self, zone: str) -> None:
        _require(self.call("setTimeZone", client().TSSetTimeZoneReq(self.session, zone)))

    def zone(self) -> str:
        return str(self.call("getTimeZone", self.session).timeZone)

    # --- statements ---------------------------------------------------------------------------------------------------

    def execute(self, text: str) -> Results | str:
        """The results of a query; the message of another statement. Ctrl-C cancels it, a second one gives it up."""
        request = client().TSExecuteStatementReq(
            self.session, text, self.statement, self.fetch_rows, self.timeout_ms or None
        )
        answer = self._cancellable("executeStatement", request)
        _require(answer.status)
        if answer.columns is None:
            return answer.status.message or ""
        return Results(self, text, answer)

    def _cancellable(self, method: str, request: Any, query_id: int = RUNNING) -> Any:
        """The answer of a call that Ctrl-C cancels: the server then ends it with an error, which is the answer.

        A second Ctrl-C gives the connection up (Disconnected): the answers that are on their way belong to nobody.
        """
        cancel = client().TSCancelOperationReq(self.session, query_id)
        interrupts = _Interrupts(lambda: self.send("cancelOperation", cancel))
        try:
            with interrupts.caught():
                self.send(method, request)
                interrupts.call_is_sent()
                answer = self.receive(method)
            if interrupts.told:
                self.receive("cancelOperation")
        except KeyboardInterrupt:
            if not interrupts.count:  # it came before the call, or behind its answer
                raise
            self.abandon()
            raise Disconnected("interrupted") from None
        return answer

    def fetch(self, text: str, query_id: int, aligned: bool) -> Any:
        request = client().TSFetchResultsReq(
            self.session, text, self.fetch_rows, query_id, aligned, self.timeout_ms or None
        )
        answer = self._cancellable("fetchResults", request, query_id)
        _require(answer.status)
        return answer

    def close_query(self, query_id: int) -> None:
        _require(self.call("closeOperation", client().TSCloseOperationReq(self.session, query_id, self.statement)))


class _Interrupts:
    """Ctrl-C while a call is under way. It must not tear a frame, nor part a call from its answer: so the first calls
    `cancel` once the call is sent, and only the second raises KeyboardInterrupt."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._sent = False
        self.count = 0
        self.told = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: self._came())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def call_is_sent(self) -> None:
        self._sent = True
        if self.count and not self.told:
            self._tell()

    def _came(self) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        if self._sent:
            self._tell()

    def _tell(self) -> None:
        self.told = True
        self._cancel()


def _require(status: Any) -> None:
    bad = first_bad(status)
    if bad is not None:
        raise Refused(bad.code, bad.message or "")


class Results:
    """An open result set; its pages are fetched as they are asked for."""

    def __init__(self, connection: Connection, text: str, answer: Any) -> None:
        self._connection = connection
        self._text = text
        self._answer = answer
        self._query_id: int | None = answer.queryId
        self.names: list[str] = list(answer.columns)
        self.types = [DataType[name] for name in answer.dataTypeList]
        self.aligned = answer.nonAlignQueryDataSet is None
        self.has_time = not answer.ignoreTimeStamp
        index = answer.columnNameIndexMap or {name: place for place, name in enumerate(dict.fromkeys(self.names))}
        self._places = [index[name] for name in self.names]

    def pages(self) -> Iterator[ResultPage]:
        """Blocks as they come, the empty one at the end left out. The result set is closed at the end."""
        block = self._answer.queryDataSet if self.aligned else self._answer.nonAlignQueryDataSet
        try:
            while block is not None:
                page = self._aligned(block) if self.aligned else self._not_aligned(block)
                if not page.rows:
                    break
                yield page
                if self._query_id is None:
                    break
                more = self._connection.fetch(self._text, self._query_id, self.aligned)
                block = (
                    (more.queryDataSet if self.aligned else more.nonAlignQueryDataSet) if more.hasResultSet else None
                )
        finally:
            self.close()

    def close(self) -> None:
        query_id, self._query_id = self._query_id, None
        if query_id is not None:
            self._connection.close_query(query_id)

    def _kind_of(self) -> dict[int, DataType]:
        return dict(zip(self._places, self.types, strict=True))

    def empty(self) -> ResultPage:
        """A page without rows, for its head."""
        columns = [PageColumn(name, Column.nulls(kind, 0)) for name, kind in zip(self.names, self.types, strict=True)]
        time = PageColumn("Time", Column.nulls(DataType.INT64, 0), True)
        if not self.aligned:
            columns = [one for column in columns for one in (time, column)]
        elif self.has_time:
            columns.insert(0, time)
        return ResultPage(columns, 0)

    def _aligned(self, block: Any) -> ResultPage:
        times = np.frombuffer(block.time, ">i8").astype(np.int64)
        kinds, rows = self._kind_of(), len(times)
        cells = []
        for place, (values, bitmap) in enumerate(zip(block.valueList, block.bitmapList, strict=True)):
            valid = np.unpackbits(np.frombuffer(bitmap, np.uint8))[:rows].astype(np.bool_)
            cells.append(_column(kinds[place], values, valid))
        columns = [PageColumn(name, cells[place]) for name, place in zip(self.names, self._places, strict=True)]
        if self.has_time:
            columns.insert(0, PageColumn("Time", Column(DataType.INT64, times), True))
        return ResultPage(columns, rows)

    def _not_aligned(self, block: Any) -> ResultPage:
        """Each column behind a column of its own times; both end with nulls where another column is longer."""
        kinds = self._kind_of()
        counts = [len(times) // 8 for times in block.timeList]
        rows = max(counts, default=0)
        columns = []
        for name, place in zip(self.names, self._places, strict=True):
            valid = np.arange(rows) < counts[place]
            times = _column(DataType.INT64, block.timeList[place], valid)
            columns.append(PageColumn("Time", times, True))
            columns.append(PageColumn(name, _column(kinds[place], block.valueList[place], valid)))
        return ResultPage(columns, rows)


def _column(kind: DataType, values: bytes, valid: np.ndarray[Any, Any]) -> Column:
    """Wire bytes of the cells that are there, spread over all rows."""
    if kind is DataType.TEXT:
        return Column.of(kind, _spread(_texts(values), valid))
    cells = np.zeros(len(valid), kind.dtype)
    cells[valid] = np.frombuffer(values, kind.wire_dtype).astype(kind.dtype)
    return Column(kind, cells, None if valid.all() else valid)


def _texts(values: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(values):
        (length,) = struct.unpack_from(">i", values, at)
        found.append(values[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _spread(texts: Sequence[bytes], valid: np.ndarray[Any, Any]) -> list[bytes | None]:
    rest = iter(texts)
    return [next(rest) if there else None for there in valid.tolist()]
