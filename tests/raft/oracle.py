"""Random directives through etcd's own harness and through this core: the text must be the same.

    python tests/raft/oracle.py [--n 20000] [--seed 1] [--jobs 1] [--oracle DIRECTORY] [--record [SCRIPT ...]]

`--oracle` names a directory with the harness, built (`raft-oracle` or `oracle`) or as Go sources; by default the
sources in `oracle_go` are built in a temporary directory, for which Go and its module proxy are needed.
`--record` writes the expected text of the scripts from the harness instead of running random directives.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from interaction import (  # noqa: E402 - the directories above must be on the path first
    SCRIPTS,
    Environment,
    commands,
    parse_directive,
    parse_script,
    render_script,
    script_paths,
    without_log_lines,
)
from random_script import random_script, reset  # noqa: E402

from iotdb_cluster.raft import leader  # noqa: E402

SOURCES = Path(__file__).parent / "oracle_go"
BUILD_SECONDS_MAX = 600
ANSWER_SECONDS_MAX = 120  # for one chunk
STEPS = 60  # directives of one script
CHUNK = 20_000  # directives that are held at once
COVERED_FROM = 20_000  # a run of so many directives must hold every command
DIRECTIVES_PER_SECOND_MIN = 300  # slower than that the run is given up: a tenth of what one quiet core does
SHOWN_MAX = 3
# A request for a hand-over that a second follower forwards makes etcd fail; here it is forwarded like a proposal.
FORWARDED_TWICE = re.compile(r"MsgTransferLeader Term:[1-9]")


class Missing(Exception):
    """There is no oracle here."""


# --- the harness ------------------------------------------------------------------------------------------------------
def find_oracle(directory: Path | None, scratch: Path) -> Path:
    """Path of the harness's binary, built in `scratch` where there is none yet. Raises Missing."""
    source = directory if directory is not None else SOURCES
    for name in ("raft-oracle", "oracle"):
        if (source / name).is_file():
            return source / name
    if shutil.which("go") is None:
        raise Missing("Go is not installed, so etcd's harness cannot be built")
    for path in source.iterdir():
        if path.suffix in (".go", ".mod", ".sum"):
            (scratch / path.name).write_bytes(path.read_bytes())
    done = subprocess.run(
        ["go", "build", "-o", "oracle", "."], cwd=scratch, capture_output=True, text=True, timeout=BUILD_SECONDS_MAX
    )
    if done.returncode:
        raise Missing(f"etcd's harness cannot be built: {done.stderr.strip()[-500:]}")
    return scratch / "oracle"


def module_directory() -> Path:
    """Where Go keeps the sources of the raft module that the harness is built from, with upstream's test files."""
    found = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    version = re.search(r"go\.etcd\.io/raft/v3 (\S+)", (SOURCES / "go.mod").read_text())
    if version is None:
        raise Missing("the raft module is not named in go.mod")
    return Path(found, f"go.etcd.io/raft/v3@{version[1]}")


def ask(oracle: Path, lines: list[str]) -> list[str]:
    """The harness's text of each line that is no `reset`, without log lines; short where the harness ended early."""
    done = subprocess.run(
        [oracle], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=ANSWER_SECONDS_MAX
    )
    texts = []
    at = 0
    output = done.stdout
    directives = [line for line in lines if not line.startswith("reset")]
    for number, line in enumerate(directives):
        head = f"{line}\n----\n"
        begin = output.find(head, at)
        if begin < 0:
            break
        begin += len(head)
        following = directives[number + 1] if number + 1 < len(directives) else None
        ends = [output.find(f"\n\n{mark}", begin - 1) for mark in ([f"{following}\n----\n", "=== reset"])]
        ends = [end for end in ends if end >= 0]
        end = min(ends) if following is not None and ends else len(output)
        texts.append(without_log_lines(output[begin:end].rstrip("\n")))
        at = end
    return texts


def sets_timeouts(oracle: Path) -> bool:
    """Whether the harness can set election timeouts, which upstream does with a hook of its own tests."""
    lines = ["reset", "add-nodes 1 voters=(1) index=2", "set-randomized-election-timeout 1 timeout=5", "raft-state"]
    return len(ask(oracle, lines)) == 3 and "panic" not in ask(oracle, lines)


# --- comparing --------------------------------------------------------------------------------------------------------
@dataclass
class Figures:
    directives: int = 0
    scripts: int = 0
    lines: int = 0
    elections: int = 0
    snapshots: int = 0  # received
    changes: int = 0  # configurations that took effect
    panics: int = 0  # of both
    known: int = 0  # of etcd's alone, for the reason above
    differences: int = 0
    commands: Counter[str] = field(default_factory=Counter)

    def add(self, other: Figures) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def missing(self, timeouts: bool) -> list[str]:
        """Commands that no directive had."""
        hooked = set() if timeouts else {"set-randomized-election-timeout", "tick-election"}
        return [command for command in commands() if not self.commands[command] and command not in hooked]


def compare(
    oracle: Path,
    seed: int,
    total: int,
    steps: int = STEPS,
    seconds_max: float = float("inf"),
    part: int = 0,
    parts: int = 1,
) -> Figures:
    """Figures of a run of `total` directives at least, or of what `seconds_max` allowed.

    `part` of `parts` runs every so many-th script of the seed, so that several processes share them.
    """
    # etcd appends a change that cannot be applied, and fails when it is; this core does not append it.
    leader._fits = lambda *_: True
    timeouts = sets_timeouts(oracle)
    end = time.monotonic() + seconds_max
    figures = Figures()
    while figures.directives < total and time.monotonic() < end:
        chunk: list[list[tuple[str, str]]] = []
        while sum(map(len, chunk)) < min(CHUNK, total - figures.directives):
            name = f"{seed}/{(figures.scripts + len(chunk)) * parts + part}"
            chunk.append(list(random_script(Random(name), steps, timeouts)))
        for script, theirs in zip(chunk, _answers(oracle, chunk), strict=True):
            _compare_script(figures, script, theirs)
            figures.scripts += 1
    return figures


def _compare_script(figures: Figures, script: list[tuple[str, str]], theirs: list[str]) -> None:
    for at, ((line, ours), other) in enumerate(zip(script, theirs, strict=True)):
        if line.startswith("reset"):
            continue
        figures.directives += 1
        figures.commands[line.split()[0]] += 1
        figures.lines += ours.count("\n") + 1
        figures.elections += ours.count("State:StateLeader")
        figures.snapshots += ours.count("Snapshot Index:")
        figures.changes += ours.count(" EntryConfChange")
        if ours == other:
            figures.panics += ours == "panic"
            continue
        lines = [line for line, _ in script[: at + 1]]
        if other == "panic" and FORWARDED_TWICE.search(_aloud(lines)):
            figures.known += 1
            return
        figures.differences += 1
        if figures.differences <= SHOWN_MAX:
            _show(figures.scripts, lines, other, ours)
        return


def _answers(oracle: Path, scripts: list[list[tuple[str, str]]]) -> list[list[str]]:
    """The harness's text of each directive; one that ends it counts as `panic`, and it is started again behind."""
    answers: list[list[str]] = []
    while len(answers) < len(scripts):
        rest = scripts[len(answers) :]
        texts = iter(ask(oracle, [line for script in rest for line, _ in script]))
        for script in rest:
            mine: list[str] = []
            for line, _ in script:
                text = "" if line.startswith("reset") else next(texts, None)
                if text is None:
                    break
                mine.append(text)
            answers.append(mine + ["panic"] * (len(script) - len(mine)))
            if len(mine) < len(script):
                break
    return answers


def replay(lines: list[str]) -> Iterator[str]:
    """This core's text of each directive."""
    environment = Environment()
    for line in lines:
        if line.startswith("reset"):
            environment = Environment(int(line.partition("=")[2] or 1))
            yield ""
            continue
        directive, _, given = line.partition("|")
        yield environment.handle(parse_directive(directive, given))


def _aloud(lines: list[str]) -> str:
    """This core's text of the last of these directives, with what `log-level` hides."""
    heard = [line.split(" log-level=")[0] for line in lines if not line.startswith("log-level")]
    return list(replay(heard))[-1] if heard else ""


def _show(number: int, script: list[str], theirs: str, ours: str) -> None:
    print(f"script {number}, directive {len(script) - 1}:")
    print("\n".join(f"    {line}" for line in script))
    print("\n".join(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), "etcd", "this core", lineterm="")))


# --- recording --------------------------------------------------------------------------------------------------------
def record(oracle: Path, paths: list[Path]) -> int:
    """Write the expected text of the scripts from the harness; how many were not left out as written by hand."""
    written = 0
    for path in paths:
        script = parse_script(path.read_text())
        if script.by_hand:
            continue
        written += 1
        lines = [reset(script.setting("heartbeat-tick", 1))]
        lines.extend(case.line + (f"|{case.input}" if case.input else "") for case in script.cases)
        outputs = ask(oracle, lines)
        if len(outputs) != len(script.cases) or "panic" in outputs:
            at = outputs.index("panic") if "panic" in outputs else len(outputs)
            raise SystemExit(f"{path.name}: the harness stopped at {script.cases[at].line!r}")
        path.write_text(render_script(script, outputs))
    return written


def commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000, help="directives at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS, help="directives of one script")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--oracle", type=Path, help="directory of the harness")
    parser.add_argument("--record", nargs="*", type=Path, help="write the expected text of these scripts (all)")
    options = parser.parse_args()
    seconds_max = max(60, options.n // DIRECTIVES_PER_SECOND_MIN)
    begun = time.monotonic()
    result: dict[str, object] = {"target": "raft-oracle", "ok": False, "seed": options.seed, "commit": commit()}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            oracle = find_oracle(options.oracle, Path(scratch))
        except Missing as exception:
            print(f"skipped: {exception}")
            print(json.dumps({**result, "skipped": str(exception)}))
            return 2
        if options.record is not None:
            paths = options.record or script_paths(SCRIPTS)
            print(f"{record(oracle, paths)} of {len(paths)} scripts recorded; the others are written by hand")
            return 0
        print(
            f"{options.n:,} random directives of seed {options.seed} through etcd's harness and through this core; "
            f"at most {seconds_max} s",
            flush=True,
        )
        figures = Figures()
        share = -(-options.n // options.jobs)
        with ProcessPoolExecutor(options.jobs) as pool:
            running = [
                pool.submit(compare, oracle, options.seed, share, options.steps, seconds_max, part, options.jobs)
                for part in range(options.jobs)
            ]
            for one in running:
                figures.add(one.result())
        missing = figures.missing(sets_timeouts(oracle)) if options.n >= COVERED_FROM else []
    result["ok"] = not figures.differences and not missing and figures.directives >= options.n
    counts = {name: value for name, value in vars(figures).items() if name != "commands"}
    print(" ".join(f"{command}={count}" for command, count in sorted(figures.commands.items())))
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({**result, **counts, "missing": missing, "seconds": seconds}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
