"""All transcripts of a real 0.12.5 server against clusters of real processes, through every node.

    python tests/conformance/run.py [--long] [--transcripts DIR]

starts one node, and three nodes with one and with three replicas, and replays every file; then once more on three
nodes with everything flushed and merged between statements. The short form takes one node for each file, and flushes
after each of the first 200 statements; `--long` asks every node of every cluster for every file, and flushes after
every 20th statement of all. The last line is a JSON object; exit 0 only where every answer was the one written.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "cluster"), str(HERE)]

from processes import Processes  # noqa: E402 - the directories above must be on the path first
from replay import Peer, cases, replay  # noqa: E402

HOST = "127.0.0.1"
FLUSHED_S_MAX = 30
SHORT_STATEMENTS = 200
LONG_EVERY = 20
SIZES = ((1, 1), (3, 1), (3, 3))  # nodes, replicas


class Flushing:
    """Flushes and merges everything between statements, and looks that it is so."""

    def __init__(self, cluster: Processes, every: int) -> None:
        self.cluster = cluster
        self.every = every
        self.flushes = 0
        self.files_most = 0  # chunk files that were seen at once
        self._peer = Peer(HOST, cluster.ports[0], {})

    def before(self, number: int) -> None:
        """To be called before each statement."""
        if number % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """All memtables of all nodes go to disk; AssertionError where they do not."""
        deadline = time.monotonic() + FLUSHED_S_MAX
        while True:  # a replica that lags behind its leader may apply something after its flush
            for statement in ("FLUSH", "MERGE"):
                assert self._peer.answer(statement) == ["ok"], statement
            left = [memtable_bytes(member.web_port) for member in self.cluster.members]
            if not any(left):
                break
            assert time.monotonic() < deadline, f"memtables hold {left} bytes after FLUSH"
        self.flushes += 1
        self.files_most = max(self.files_most, len(list(self.cluster.directory.rglob("*.chunk"))))

    def close(self) -> None:
        self._peer.close()


def memtable_bytes(web_port: int) -> float:
    """What the node says of itself at /metrics."""
    with urllib.request.urlopen(f"http://{HOST}:{web_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("iotdb_memtable_bytes ")))


def transcripts(directory: Path) -> list[Path]:
    """The files of the 0.12 dialect."""
    return [*sorted(directory.glob("0*.transcript")), *sorted(directory.glob("fuzz_*.transcript"))]


def run_files(
    title: str, files: list[Path], ports: Callable[[int], list[int]], flushing: Flushing | None = None
) -> tuple[int, int]:
    """(right, wrong) answers of all files, each through its ports."""
    right_all = wrong_all = 0
    for at, path in enumerate(files):
        for port in ports(at):
            right, wrong = replay(HOST, port, path, None if flushing is None else flushing.before)
            print(*wrong, sep="\n", end="\n" if wrong else "")
            right_all, wrong_all = right_all + right, wrong_all + len(wrong)
    print(f"{title}: {right_all} right, {wrong_all} wrong", flush=True)
    return right_all, wrong_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--transcripts", type=Path, default=HERE / "transcripts")
    options = parser.parse_args()
    files = transcripts(options.transcripts)
    began = time.monotonic()
    right = wrong = flushes = 0

    def count(found: tuple[int, int]) -> None:
        nonlocal right, wrong
        right, wrong = right + found[0], wrong + found[1]

    with tempfile.TemporaryDirectory() as scratch:
        for nodes, replicas in SIZES:
            with Processes(Path(scratch) / f"{nodes}x{replicas}", nodes, replicas) as cluster:
                every = cluster.ports
                ports = (lambda _: every) if options.long else (lambda at: [every[at % len(every)]])  # noqa: B023
                count(run_files(f"{nodes} nodes, {replicas} replicas", files, ports))
        with Processes(Path(scratch) / "flushed", 3, 3) as cluster:
            flushing = Flushing(cluster, LONG_EVERY if options.long else 1)
            chosen, seen = [], 0
            for path in sorted(files, reverse=True):
                if options.long or seen < SHORT_STATEMENTS:
                    chosen.append(path)
                    seen += len(list(cases(path)))
            some = [cluster.ports[1]]
            count(run_files(f"flushed every {flushing.every}", chosen, lambda _: some, flushing))
            flushes = flushing.flushes
            assert flushing.files_most, "no chunk file was written"
            flushing.close()
    figures = {"target": "conformance", "ok": not wrong, "right": right, "wrong": wrong, "flushes": flushes}
    print(json.dumps({**figures, "long": options.long, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
