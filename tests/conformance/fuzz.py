"""Nonsense for a cluster of real processes: no answer but a status, nobody's connection but the sender's own ends.

    python tests/conformance/fuzz.py [--minutes 1] [--seed 1] [--nodes 1]

sends statements of the transcripts with words and signs dropped, doubled, moved and mixed; random text; megabytes of
nesting; and frames that are cut, changed, too long or no Thrift at all, in both protocols. After each round another
session must be answered as ever, and the nodes' logs must tell of no unexpected failure. The last line is a JSON
object; exit 0 only where that held.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "cluster"), str(HERE)]

from processes import Processes  # noqa: E402 - the directories above must be on the path first
from replay import Peer, cases  # noqa: E402

HOST = "127.0.0.1"
ANSWER_S_MAX = 60
ROUND = 60  # statements and frames of one round
SCHEMA = [
    "SET STORAGE GROUP TO root.fz",
    *(
        f"CREATE TIMESERIES root.fz.d{d}.s{s} WITH DATATYPE={kind}"
        for d in range(2)
        for s, kind in enumerate(("INT32", "INT64", "FLOAT", "DOUBLE", "BOOLEAN", "TEXT"))
    ),
    *(f"INSERT INTO root.fz.d0(time, s0, s3, s4, s5) VALUES ({t}, {t}, {t}.5, true, 'x{t}')" for t in range(20)),
]
# These would take the means of going on away from the fuzzer itself.
LEFT_OUT = re.compile(r"password|user|system", re.IGNORECASE)


def sources() -> list[list[str]]:
    """The words and signs of every statement of the transcripts, on this schema."""
    found = []
    for path in sorted((HERE / "transcripts").glob("*.transcript")):
        for case in cases(path):
            text = re.sub(r"root\.[a-z0-9]+(?=[. ,)]|$)", "root.fz", case.statement)
            if not LEFT_OUT.search(text):
                found.append(re.findall(r"\s+|\w+|.", text))
    return found


def mutated(chance: random.Random, pieces: list[list[str]]) -> str:
    words = list(chance.choice(pieces))
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(words))
        match chance.randrange(6):
            case 0 if len(words) > 1:
                del words[at]
            case 1:
                words.insert(at, chance.choice(words))
            case 2:
                words[at] = chance.choice(chance.choice(pieces))
            case 3:
                words.insert(at, chr(chance.choice((0, 10, 39, 34, 92, 96, 0x4E2D, chance.randrange(1, 0xD000)))))
            case 4:
                words[at] = chance.choice(
                    ("-1", "0", "9" * 30, "1e400", "NaN", "*", "root", "now()", "''", "1mo", "()")
                )
            case _:
                words = words[: at + 1] + chance.choice(pieces)[-6:]
    return "".join(words)


def megabytes(chance: random.Random) -> str:
    n = chance.randint(1_000, 400_000)
    return chance.choice(
        [
            "SELECT a FROM root.fz WHERE " + "(" * n,
            "SELECT a FROM root.fz WHERE " + "NOT (" * n + "a > 1" + ")" * n,
            "SELECT s0 FROM root.fz.d0 WHERE " + " or ".join(["s0 > 1"] * (n // 20)),
            "SELECT s0 FROM root.fz.d0 WHERE s0 in (" + ", ".join(["1"] * (n // 4)) + ")",
            "SELECT " + ", ".join(["s0"] * (n // 10)) + " FROM root.fz.d0",
            "SELECT s0 FROM " + ", ".join(["root.fz.*"] * (n // 40)),
            "SELECT s0 FROM root.fz" + ".*" * n,
            "SELECT s5 FROM root.fz.d0 WHERE s5 REGEXP '" + "(a*)*" * min(n, 50) + "b'",
            "SELECT s5 FROM root.fz.d0 WHERE s5 LIKE '" + "%a" * min(n, 300) + "'",
            "SELECT count(s0) FROM root.fz.d0 GROUP BY ([0, 9223372036854775807), 1ms)",
            "SELECT count(s0) FROM root.fz.d0 GROUP BY ([0, 9223372036854775807), 1mo)",
            "INSERT INTO root.fz.d0(time" + ", s0" * n + ") VALUES (1" + ", 1" * n + ")",
            "DELETE FROM " + ", ".join(["root.fz.d0.s0"] * (n // 200)) + " WHERE time = 99",
            "'" + "\\'" * n,
            chance.choice("'\"([{") * n,
        ]
    )


def noise(chance: random.Random) -> str:
    return chance.randbytes(chance.randint(0, 300)).decode(chance.choice(("latin-1", "utf-8")), "replace")


class Statements:
    """Texts through one session, by all three calls; what is wrong with an answer is a text."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._peer = Peer(HOST, port, {})

    def send(self, text: str, call: str) -> str:
        peer = self._peer
        types = peer.types
        try:
            answer = getattr(peer.client, call)(
                types.TSExecuteStatementReq(peer.session, text, peer.statement, 100, 20_000)
            )
            code = answer.status.code
            if code == 500 and "Exception occurred while" in (answer.status.message or ""):
                return f"{code}: {answer.status.message[:300]}"
            if answer.columns is not None:
                peer.client.closeOperation(types.TSCloseOperationReq(peer.session, answer.queryId, peer.statement))
        except Exception as error:
            self._peer = Peer(HOST, self._port, {})
            return repr(error)
        return ""

    def close(self) -> None:
        self._peer.close()


def good_frame(session: int, statement: int, compact: bool, text: str) -> bytes:
    from iotdb.thrift.rpc import TSIService, ttypes
    from thrift.protocol import TBinaryProtocol, TCompactProtocol
    from thrift.transport import TTransport

    buffer = TTransport.TMemoryBuffer()
    make = TCompactProtocol.TCompactProtocol if compact else TBinaryProtocol.TBinaryProtocol
    client = TSIService.Client(make(buffer))
    client.send_executeStatement(ttypes.TSExecuteStatementReq(session, text, statement, 100))
    data = buffer.getvalue()
    return struct.pack(">I", len(data)) + data


def odd_frame(chance: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    match chance.randrange(8):
        case 0:
            return bytes(data[: chance.randrange(len(data))])
        case 1:
            for _ in range(chance.randint(1, 5)):
                data[chance.randrange(4, len(data))] = chance.randrange(256)
        case 2:
            return struct.pack(">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 600_000_000))) + bytes(data[4:])
        case 3:
            at = chance.randrange(4, len(data) - 4)
            data[at : at + 4] = chance.choice((b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x10\x00\x00"))
        case 4:
            inner = chance.randbytes(chance.randint(1, 400))
            return struct.pack(">I", len(inner)) + inner
        case 5:
            inner = chance.choice((b"\x80\x01\x00\x01", b"\x82\x21\x01")) + chance.randbytes(chance.randint(0, 60))
            return struct.pack(">I", len(inner)) + inner
        case 6:
            nested = b"\x0c\x00\x01" * chance.randint(1, 100_000)
            inner = b"\x80\x01\x00\x01\x00\x00\x00\x10executeStatement\x00\x00\x00\x01" + nested
            return struct.pack(">I", len(inner)) + inner
        case _:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    return bytes(data)


def send_frame(port: int, frame: bytes) -> str:
    """What is wrong with the way it was taken: an answer, the connection's end, or silence where more is awaited."""
    try:
        with socket.create_connection((HOST, port), timeout=ANSWER_S_MAX) as link:
            link.sendall(frame)
            link.shutdown(socket.SHUT_WR)
            while link.recv(65_536):
                pass
    except TimeoutError:
        return f"no answer and no end within {ANSWER_S_MAX} s to {frame[:40]!r}..."
    except OSError:
        pass  # it was ended before it was sent whole
    return ""


def alive(port: int) -> str:
    """Whether another session is served as ever."""
    try:
        peer = Peer(HOST, port, {})
        for text in ("SET SYSTEM TO WRITABLE", "DELETE STORAGE GROUP root.fz", *SCHEMA):
            peer.answer(text)
        got = peer.answer("SELECT count(s0) FROM root.fz.d0")
        peer.close()
    except Exception as error:
        return f"another session: {error!r}"
    return "" if got == ["count(root.fz.d0.s0):INT64", "20"] else f"another session was answered {got}"


def run_round(cluster: Any, pieces: list[list[str]], seed: int) -> tuple[int, list[str]]:
    """(things sent, what was wrong)."""
    chance = random.Random(seed)
    port = chance.choice(cluster.ports)
    wrong = [one for one in [alive(port)] if one]
    statements = Statements(port)
    sent = 0
    for _ in range(ROUND):
        shape = chance.random()
        if shape < 0.75:
            text = mutated(chance, pieces) if shape < 0.65 else noise(chance) if shape < 0.72 else megabytes(chance)
            if LEFT_OUT.search(text):
                continue
            call = chance.choice(
                ("executeStatement", "executeStatement", "executeQueryStatement", "executeUpdateStatement")
            )
            found = statements.send(text, call)
            shown = text if len(text) < 300 else text[:200] + f"... ({len(text)} characters)"
        else:
            good = good_frame(1, 1, chance.random() < 0.3, mutated(chance, pieces))
            frame = odd_frame(chance, good)
            found, shown = send_frame(port, frame), repr(frame[:100])
        sent += 1
        if found:
            wrong.append(f"seed {seed}: {shown}\n    {found}")
    statements.close()
    return sent, wrong


def run(cluster: Any, seconds: float, seed: int) -> tuple[int, list[str]]:
    pieces = sources()
    ends = time.monotonic() + seconds
    sent, wrong, at = 0, list[str](), 0
    while time.monotonic() < ends and not wrong:
        more, wrong = run_round(cluster, pieces, seed * 100_000 + at)
        sent, at = sent + more, at + 1
    wrong += [one for one in [alive(port) for port in cluster.ports] if one]
    wrong += cluster.complaints()
    return sent, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    print(f"sends nonsense to {options.nodes} node(s) for {options.minutes} min; ends what it starts")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Processes(Path(scratch), options.nodes) as cluster:
        sent, wrong = run(cluster, options.minutes * 60, options.seed)
        if wrong:
            print(*wrong[:20], sep="\n")
            print(cluster.tails(40))
    figures = {"target": "fuzz", "ok": not wrong, "sent": sent, "wrong": len(wrong), "seed": options.seed}
    print(json.dumps({**figures, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
