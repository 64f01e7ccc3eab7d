"""Replays a transcript against a server: statements with the answers that a real 0.12.5 server gave.

    python tests/conformance/replay.py HOST:PORT FILE...

A line that begins with '> ' is a statement; what follows, up to the next one, is its answer: `ok`, `error CODE`, or a
header and rows with cells between ' | '. `# ...` is a comment. `@unordered` lets the rows of the next query come in any
order, `@rows` compares only their number and width, `@superset` also takes an answer where the peer refused, and
`@session key=value ...` opens a new session. Columns under a wildcard may come in any order.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

FETCH_ROWS = 1000
GOOD = (200, 707)
FIXED = {"BOOLEAN": ">?", "INT32": ">i", "INT64": ">q", "FLOAT": ">f", "DOUBLE": ">d"}


@dataclass
class Case:
    """A statement, the answer wanted, and how to compare."""

    line: int
    statement: str
    want: list[str] = field(default_factory=list)
    modes: frozenset[str] = frozenset()
    session: dict[str, str] | None = None


def cases(path: Path) -> Iterator[Case]:
    modes: set[str] = set()
    session: dict[str, str] | None = None
    case: Case | None = None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.startswith(("> ", "@")):
            if case is not None:
                yield case
                case = None
            if text.startswith("@session"):
                session = dict(word.split("=", 1) for word in text.split()[1:])
            elif text.startswith("@"):
                modes.add(text[1:].split()[0])
            else:
                case = Case(number, text[2:], [], frozenset(modes), session)
                modes, session = set(), None
        elif case is not None and text.strip() and not text.startswith("#"):
            case.want.append(text)
    if case is not None:
        yield case


class Peer:
    """A session over the stock client's generated code; answers as the lines of a transcript."""

    def __init__(self, host: str, port: int, settings: dict[str, str]) -> None:
        from iotdb.thrift.rpc import TSIService, ttypes
        from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
        from thrift.transport import TSocket, TTransport

        self.types = ttypes
        socket = TSocket.TSocket(host, port)
        socket.setTimeout(60_000)
        self.transport = TTransport.TFramedTransport(socket)
        self.transport.open()
        self.client = TSIService.Client(TBinaryProtocolAccelerated(self.transport))
        try:
            self._log_in(settings)
        except BaseException:
            self.transport.close()
            raise

    def _log_in(self, settings: dict[str, str]) -> None:
        opened = self.client.openSession(
            self.types.TSOpenSessionReq(
                client_protocol=2,
                username=settings.get("user", "root"),
                password=settings.get("password", "root"),
                zoneId=settings.get("zone", "UTC"),
                configuration={"version": settings["version"]} if "version" in settings else {},
            )
        )
        self.refused = opened.status if opened.status.code not in GOOD else None
        self.session = opened.sessionId
        self.statement = 0 if self.refused else self.client.requestStatementId(self.session)

    def close(self) -> None:
        if not self.refused:
            self.client.closeSession(self.types.TSCloseSessionReq(self.session))
        self.transport.close()

    def answer(self, sql: str) -> list[str]:
        if self.refused:
            return [f"error {self.refused.code}"]
        request = self.types.TSExecuteStatementReq(self.session, sql, self.statement, FETCH_ROWS)
        response = self.client.executeStatement(request)
        bad = first_bad(response.status)
        if bad is not None:
            return [f"error {bad.code}", f"# {bad.message}"]
        if response.columns is None:
            return ["ok"]
        return self._table(sql, response)

    def _table(self, sql: str, response: Any) -> list[str]:
        names, kinds = list(response.columns), list(response.dataTypeList)
        index = response.columnNameIndexMap or {name: i for i, name in enumerate(dict.fromkeys(names))}
        places = [index[name] for name in names]
        physical = dict(zip(places, kinds, strict=True))
        aligned = response.nonAlignQueryDataSet is None
        header = [f"{name}:{kind}" for name, kind in zip(names, kinds, strict=True)]
        if not aligned:
            header = [cell for column in header for cell in ("Time:INT64", column)]
        elif not response.ignoreTimeStamp:
            header.insert(0, "Time:INT64")
        lines = [" | ".join(header) or "(no columns)"]
        block = response.queryDataSet if aligned else response.nonAlignQueryDataSet
        while block is not None:
            rows = self._rows(block, physical, places, response.ignoreTimeStamp, aligned)
            lines += rows
            if not rows:
                break
            fetch = self.types.TSFetchResultsReq(self.session, sql, FETCH_ROWS, response.queryId, aligned)
            more = self.client.fetchResults(fetch)
            bad = first_bad(more.status)
            if bad is not None:
                return [f"error {bad.code}", f"# {bad.message}"]
            if not more.hasResultSet:
                break
            block = more.queryDataSet if aligned else more.nonAlignQueryDataSet
        close = self.types.TSCloseOperationReq(self.session, response.queryId, self.statement)
        self.client.closeOperation(close)
        return lines

    def _rows(self, block: Any, kinds: dict[int, str], places: list[int], no_time: bool, aligned: bool) -> list[str]:
        if not aligned:
            series = [
                [
                    cell
                    for (time,), value in zip(struct.iter_unpack(">q", times), cells(kinds[i], values), strict=True)
                    for cell in ((str(time), value),)
                ]
                for i, (times, values) in enumerate(zip(block.timeList, block.valueList, strict=True))
            ]
            columns = [series[place] for place in places]
            longest = max(map(len, columns), default=0)
            padded = [column + [("null", "null")] * (longest - len(column)) for column in columns]
            return [" | ".join(cell for pair in row for cell in pair) for row in zip(*padded, strict=True)]
        count = len(block.time) // 8
        table = []
        for i, (values, bitmap) in enumerate(zip(block.valueList, block.bitmapList, strict=True)):
            present = iter(cells(kinds[i], values))
            bits = "".join(f"{byte:08b}" for byte in bitmap)
            table.append([next(present) if bits[row] == "1" else "null" for row in range(count)])
        times = [str(time) for (time,) in struct.iter_unpack(">q", block.time)]
        return [
            " | ".join(([] if no_time else [times[row]]) + [table[place][row] for place in places])
            for row in range(count)
        ]


def first_bad(status: Any) -> Any:
    """The status that counts as the statement's, None where it succeeded."""
    if status.code in GOOD:
        return None
    return next((sub for sub in status.subStatus or [] if sub.code not in GOOD), status)


def cells(kind: str, data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        if kind == "TEXT":
            (length,) = struct.unpack_from(">i", data, at)
            yield json.dumps(data[at + 4 : at + 4 + length].decode("utf-8", "replace"), ensure_ascii=False)
            at += 4 + length
            continue
        (value,) = struct.unpack_from(FIXED[kind], data, at)
        at += struct.calcsize(FIXED[kind])
        yield str(value).lower() if kind == "BOOLEAN" else repr(value)


def same(case: Case, got: list[str]) -> bool:
    """Whether an answer is as good as the one wanted."""
    want = case.want
    got = [line for line in got if not line.startswith("#")]
    if want == got or ("superset" in case.modes and want[:1] != ["ok"]):
        return True
    if want == ["error 500"]:  # the peer broke: any clear refusal is as good
        return got[0].startswith("error")
    if not want or len(want) != len(got) or want[0] == "ok" or want[0].startswith("error"):
        return False
    if "rows" in case.modes:
        return want[0].count(" | ") == got[0].count(" | ")
    header, names = want[0].split(" | "), got[0].split(" | ")
    if header != names:
        if "*" not in case.statement or sorted(header) != sorted(names):
            return False
        order = [names.index(name) for name in header]
        got = [" | ".join(line.split(" | ")[i] for i in order) for line in got]
    kinds = [name.rsplit(":", 1)[-1] for name in header]
    left, right = want[1:], got[1:]
    if "unordered" in case.modes:
        left, right = sorted(left), sorted(right)
    return all(same_row(kinds, a.split(" | "), b.split(" | ")) for a, b in zip(left, right, strict=True))


def same_row(kinds: list[str], want: list[str], got: list[str]) -> bool:
    return len(want) == len(got) and all(map(same_cell, kinds, want, got))


def same_cell(kind: str, want: str, got: str) -> bool:
    if want == got:
        return True
    if kind in ("FLOAT", "DOUBLE") and "null" not in (want, got):
        a, b = float(want), float(got)
        tolerance = 1e-6 if kind == "FLOAT" else 1e-12
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-300)
    if kind == "TEXT" and want.startswith('"{'):
        return bool(json.loads(json.loads(want)) == json.loads(json.loads(got)))
    return False


def replay(
    host: str, port: int, path: Path, before: Callable[[int], None] | None = None, most: int | None = None
) -> tuple[int, list[str]]:
    """(how many statements were answered right, a text for each other one).

    `before` is called before each statement with its number, from 0; `most`: only so many of the first statements.
    """
    peer = Peer(host, port, {})
    right, wrong = 0, []
    for number, case in enumerate(islice(cases(path), most)):
        if before is not None:
            before(number)
        if case.session is not None:
            peer.close()
            peer = Peer(host, port, case.session)
        got = peer.answer(case.statement)
        if same(case, got):
            right += 1
        else:
            shown = "\n".join(f"    want {line}" for line in case.want[:6]) + "\n"
            shown += "\n".join(f"    got  {line}" for line in got[:6])
            wrong.append(f"{path.name}:{case.line}: {case.statement}\n{shown}")
    peer.close()
    return right, wrong


def main() -> int:
    host, _, port = sys.argv[1].partition(":")
    failed = 0
    for name in sys.argv[2:]:
        right, wrong = replay(host, int(port), Path(name))
        failed += len(wrong)
        print(*wrong, sep="\n")
        print(f"{name}: {right} of {right + len(wrong)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
