"""Random queries on random data with late writes, deletes and flushes: real clusters against the naive model.

    python tests/query/agree.py [--queries N] [--seed S] [--every-port]

starts one node and three nodes, runs the same random scripts on both, and holds each answer against the model's and
the two clusters' answers against each other: equal, but for sums and averages, which may differ by one unit in the last
place. `--every-port` asks each of the three nodes. The last line is a JSON object; exit 0 only where all agreed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE.parents[1]), str(HERE.parent / "cluster"), str(HERE.parent / "conformance"), str(HERE),
]  # fmt: skip

from model import Query, Refused, Row, float32  # noqa: E402 - the directories above must be on the path first
from processes import Processes  # noqa: E402
from replay import Peer  # noqa: E402
from scripts import Change, Script  # noqa: E402

HOST = "127.0.0.1"
ROUND = 100  # queries of one database
BATCHES = 4  # changes of one database
SHOWN_MAX = 5
SHOW_EVERY = 5  # every so many queries one is a SHOW or COUNT


class Disagreement(Exception):
    """Two answers that should be equal are not."""


def parsed(lines: list[str]) -> list[Row]:
    """The lines of an answer as header cells and typed cells."""
    if lines[0].startswith("error"):
        raise Refused(int(lines[0].split()[1]))
    header = [] if lines[0] == "(no columns)" else lines[0].split(" | ")
    kinds = [cell.rpartition(":")[2] for cell in header]
    return [header, *([*map(cell_of, kinds, line.split(" | "))] for line in lines[1:])]


def cell_of(kind: str, text: str) -> Any:
    if text == "null":
        return None
    if kind == "TEXT":
        return json.loads(text)
    if kind == "BOOLEAN":
        return text == "true"
    return int(text) if kind.startswith("INT") else float(text)


def same_cell(want: Any, got: Any) -> bool:
    if isinstance(want, float) and isinstance(got, float):
        if math.isnan(want) or math.isnan(got):
            return math.isnan(want) and math.isnan(got)
        return math.isclose(want, got, rel_tol=1e-11, abs_tol=1e-9)
    return type(want) is type(got) and bool(want == got)


def same_last(want: Row, got: Row) -> bool:
    """LAST shows values as text."""
    time_, name, value, kind = want
    text = json.dumps(got[2]) if kind == "TEXT" else str(got[2])
    shown = cell_of(kind, text.replace("Infinity", "inf"))
    if kind == "FLOAT":  # the shortest digits that are that FLOAT
        shown = float32(shown)
    return [time_, name, kind] == [got[0], got[1], got[3]] and same_cell(value, shown)


def compare_with_model(query: Query, want: list[Row] | int, lines: list[str]) -> None:
    try:
        got: list[Row] | int = parsed(lines)
    except Refused as refusal:
        got = refusal.code
    if isinstance(want, int) or isinstance(got, int):
        if want != got:
            raise Disagreement(f"model {shown(want)}\nserver {shown(got)}")
        return
    same = same_last if query.kind == "last" else lambda a, b: len(a) == len(b) and all(map(same_cell, a, b))
    if want[0] != got[0] or len(want) != len(got) or not all(map(same, want[1:], got[1:])):
        wrong = [f"  {a}\n  {b}" for a, b in zip(want[1:], got[1:], strict=False) if not same(a, b)][:SHOWN_MAX]
        heads = "" if want[0] == got[0] else f"\n  {want[0]}\n  {got[0]}"
        raise Disagreement(f"model {len(want)} lines, server {len(got)}{heads}\n" + "\n".join(wrong))


def shown(answer: list[Row] | int) -> str:
    return f"error {answer}" if isinstance(answer, int) else f"{len(answer) - 1} rows {answer[:2]}"


def compare_list(lines: list[str], known: list[int], rows: list[Row] | int) -> None:
    """A SHOW or COUNT, of which some columns are known; in any order."""
    try:
        got: list[Row] | int = [[row[at] for at in known] for row in parsed(lines)[1:]]
    except Refused as refusal:
        got = refusal.code
    if isinstance(got, int) or isinstance(rows, int):
        if got != rows:
            raise Disagreement(f"model {rows}\nserver {got}")
    elif sorted(got) != sorted(rows):
        raise Disagreement(f"model {sorted(rows)[:6]}\nserver {sorted(got)[:6]}")


def compare_servers(one: list[str], other: list[str]) -> None:
    if one == other:
        return
    if len(one) != len(other) or one[0] != other[0]:
        raise Disagreement(f"one node {one[:3]}\nthree nodes {other[:3]}")
    sums = [name.lower().startswith(("sum(", "avg(")) for name in one[0].split(" | ")]
    for left, right in zip(one[1:], other[1:], strict=True):
        for is_sum, a, b in zip(sums, left.split(" | "), right.split(" | "), strict=True):
            if a != b and not (is_sum and "null" not in (a, b) and abs(float(a) - float(b)) <= math.ulp(float(a))):
                raise Disagreement(f"one node    {left}\nthree nodes {right}")


class Server:
    """A cluster's sessions, one a node."""

    def __init__(self, ports: list[int], zone: str) -> None:
        self.peers = [Peer(HOST, port, {"zone": zone}) for port in ports]

    def apply(self, change: Change, at: int) -> None:
        peer = self.peers[at % len(self.peers)]
        types = peer.types
        if change.statements:
            request = types.TSExecuteBatchStatementReq(peer.session, change.statements)
            status = peer.client.executeBatchStatement(request)
            if status.code != 200:
                bad = [(s, c.code, c.message) for s, c in zip(change.statements, status.subStatus or [], strict=False)]
                raise Disagreement(f"{status.code}: {[one for one in bad if one[1] != 200][:3]}")
        for device, instant, names, texts in change.rows:
            plain = [text[1:-1] if text.startswith("'") else text for text in texts]
            request = types.TSInsertStringRecordReq(peer.session, device, names, plain, instant)
            status = peer.client.insertStringRecord(request)
            if status.code != 200:
                raise Disagreement(f"insert at {instant}: {status.code} {status.message}")

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


def run_script(seed: int, clusters: list[list[int]], queries: int, every_port: bool) -> int:
    """How many queries agreed; Disagreement with all that is needed to run it again."""
    script = Script(seed)
    servers = [Server(ports, script.tz) for ports in clusters]
    random = script.random
    text = "setting up"
    done = 0
    try:
        begun = script.begin()
        for server in servers:
            server.apply(begun, 0)
        for batch in range(BATCHES):
            change = script.change()
            flush = random.random() < 0.6
            for server in servers:
                server.apply(change, batch)
                if flush:
                    server.peers[0].answer("FLUSH")
            for number in range(queries // BATCHES):
                if number % SHOW_EVERY == 0:
                    text, known, rows = script.show()
                    for peer in [peer for server in servers for peer in server.peers]:
                        compare_list(peer.answer(text), known, rows)
                    done += 1
                    continue
                query = script.query()
                text = query.sql
                try:
                    want: list[Row] | int = script.model.answer(query)
                except Refused as refusal:
                    want = refusal.code
                first = servers[0].peers[0].answer(text)
                compare_with_model(query, want, first)
                plain = [line for line in first if not line.startswith("# ")]
                for server in servers[1:]:
                    asked = server.peers if every_port else [random.choice(server.peers)]
                    for peer in asked:
                        compare_servers(plain, [line for line in peer.answer(text) if not line.startswith("# ")])
                done += 1
        for server in servers:
            server.apply(script.end(), 0)
    except Disagreement as found:
        raise Disagreement(f"seed {seed}, query {done} of it, zone {script.tz}: {text}\n{found}") from None
    finally:
        for server in servers:
            server.close()
    return done


def run(clusters: list[list[int]], queries: int, seed: int, every_port: bool) -> tuple[int, str]:
    """(queries that agreed, what did not or "")."""
    done, at = 0, 0
    while done < queries:
        try:
            done += run_script(seed * 1_000_000 + at, clusters, ROUND, every_port)
        except Disagreement as found:
            return done, str(found)
        at += 1
        if at % 10 == 0:
            print(f"{done} queries agreed", flush=True)
    return done, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-port", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Processes(Path(scratch) / "one", 1, 1) as one,
        Processes(Path(scratch) / "three", 3, 3) as three,
    ):
        done, wrong = run([one.ports, three.ports], options.queries, options.seed, options.every_port)
    if wrong:
        print(wrong)
    figures = {"target": "agree", "ok": not wrong, "queries": done, "seed": options.seed}
    print(json.dumps({**figures, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
