"""Random directives through etcd's own harness and through this core: the text must be the same.

    python tests/raft/oracle.py [--n 20000] [--seed 1] [--oracle DIRECTORY] [--record]

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
from collections.abc import Iterator
from pathlib import Path
from random import Random

from interaction import SCRIPTS, Endless, Environment, parse_directive, parse_script, render_script, without_log_lines

from iotdb_cluster.raft import leader

SOURCES = Path(__file__).parent / "oracle_go"
BUILD_SECONDS_MAX = 600
# A request for a hand-over that a second follower forwards makes etcd fail; here it is forwarded like a proposal.
FORWARDED_TWICE = re.compile(r"MsgTransferLeader Term:[1-9]")


class Missing(Exception):
    """There is no oracle here."""


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


def ask(oracle: Path, lines: list[str]) -> list[str]:
    """The harness's text of each line that is no `reset`, without log lines; short where the harness ended early."""
    done = subprocess.run([oracle], input="\n".join(lines) + "\n", capture_output=True, text=True)
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


# --- random scripts ---------------------------------------------------------------------------------------------------
OPTIONS = (
    "",
    "prevote=true",
    "prevote=true checkquorum=true",
    "checkquorum=true",
    "inflight=2",
    "inflight=1 max-committed-size-per-ready=1",
    "async-storage-writes=true",
    "async-storage-writes=true prevote=true inflight=3",
    "async-storage-writes=true max-committed-size-per-ready=1",
    "step-down-on-removal=true",
    "step-down-on-removal=true prevote=true checkquorum=true async-storage-writes=true",
    "checkquorum=true read-only=lease-based",
)


def random_script(random: Random, steps: int) -> Iterator[tuple[str, str]]:
    """(directive, this core's text) of one script; it ends early where this core fails.

    The choice depends on this core's state, because some directives make the harness itself fail.
    """
    count = random.choice((1, 3, 3, 3, 5))
    spare = random.choice((0, 0, 2))
    learners = random.choice((0, 0, 1)) if count > 1 else 0
    options = random.choice(OPTIONS)
    voters = ",".join(str(i + 1) for i in range(count - learners))
    names = f"voters=({voters})" + (f" learners=({count})" if learners else "")
    lines = [f"add-nodes {count} {names} index={random.randint(2, 9)} {options}".strip()]
    if spare:
        lines.append(f"add-nodes {spare} {options}".strip())
    if random.random() < 0.7:
        lines += ["campaign 1", "stabilize log-level=none"]
    changes = random.random() < 0.5
    environment = Environment()
    total = count + spare
    last = ["stabilize", "raft-state", *(f"raft-log {number}" for number in range(1, total + 1))]
    for step in range(len(lines) + steps + len(last)):
        if step < len(lines):
            line = lines[step]
        elif step < len(lines) + steps:
            line = _random_directive(random, environment, step, changes, "async" in options)
        else:
            line = last[step - len(lines) - steps]
        directive, _, given = line.partition("|")
        try:
            text = environment.handle(parse_directive(directive, given))
        except Endless:
            return  # the harness would not come back
        yield line, text
        if text == "panic":
            return


def _random_directive(random: Random, environment: Environment, step: int, changes: bool, asynchronous: bool) -> str:
    total = len(environment.nodes)
    a, b = random.randint(1, total), random.randint(1, total)
    node = environment.nodes[a - 1]
    words = {
        f"campaign {a}": 9,
        f"propose {a} p{step}": 20,
        f"deliver-msgs {a}": 15,
        f"deliver-msgs {a} type=MsgApp": 2,
        f"deliver-msgs drop={a}": 6,
        f"process-ready {a}": 10,
        f"tick-heartbeat {a}": 7,
        f"status {a}": 4,
        "raft-state": 2,
        f"raft-log {a}": 3,
        f"forget-leader {a}": 2,
        "stabilize": 7,
        "stabilize log-level=none": 1,
    }
    if node.raw.applied >= node.log.first_index():
        words[f"compact {a} {random.randint(node.log.first_index(), node.raw.applied)}"] = 4
    if a != b:
        words[f"stabilize {a} {b}"] = 9
        words[f"report-unreachable {a} {b}"] = 2
        words[f"transfer-leadership from={a} to={b}"] = 3
        if node.raw.term:  # the harness would send a message that no replica sends
            words[f"send-snapshot {a} {b}"] = 1
    if asynchronous:
        words[f"process-append-thread {a}"] = 8
        words[f"process-apply-thread {a}"] = 6
    if changes:
        words[_random_change(random, a, total)] = 10
    return random.choices(list(words), list(words.values()))[0]


def _random_change(random: Random, node: int, total: int) -> str:
    single = random.random() < 0.3
    parts = [
        random.choice("vvlrrvlu") + str(random.randint(1, total))
        for _ in range(1 if single else random.choice((0, 1, 1, 2, 3)))
    ]
    extra = " v1=true" if single else random.choice(("", "", " transition=implicit", " transition=explicit"))
    return f"propose-conf-change {node}{extra}|{' '.join(parts)}"


# --- comparing --------------------------------------------------------------------------------------------------------
def compare(oracle: Path, seed: int, total: int, steps: int) -> dict[str, object]:
    """Figures of a run of `total` directives at least; `differences` says how many scripts had one."""
    begun = time.monotonic()
    # etcd appends a change that cannot be applied, and fails when it is; this core does not append it.
    leader._fits = lambda *_: True
    scripts: list[list[tuple[str, str]]] = []
    while sum(map(len, scripts)) < total:
        scripts.append(list(random_script(Random(f"{seed}/{len(scripts)}"), steps)))
    figures: dict[str, int] = dict.fromkeys(("directives", "lines", "elections", "panics", "known", "differences"), 0)
    for number, (script, theirs) in enumerate(zip(scripts, _answers(oracle, scripts), strict=True)):
        for at, ((line, ours), other) in enumerate(zip(script, theirs, strict=True)):
            figures["directives"] += 1
            figures["lines"] += ours.count("\n") + 1
            figures["elections"] += ours.count("State:StateLeader")
            if ours == other:
                figures["panics"] += ours == "panic"
                continue
            if other == "panic" and FORWARDED_TWICE.search(_aloud([line for line, _ in script[: at + 1]])):
                figures["known"] += 1
                break
            figures["differences"] += 1
            if figures["differences"] <= 3:
                _show(number, [line for line, _ in script[: at + 1]], other, ours)
            break
    return {**figures, "scripts": len(scripts), "seconds": round(time.monotonic() - begun, 1)}


def _answers(oracle: Path, scripts: list[list[tuple[str, str]]]) -> list[list[str]]:
    """The harness's text of each directive; one that ends it counts as `panic`, and it is started again behind."""
    answers: list[list[str]] = []
    while len(answers) < len(scripts):
        rest = scripts[len(answers) :]
        texts = ask(oracle, [line for script in rest for line in ("reset", *(line for line, _ in script))])
        at = 0
        for script in rest:
            mine = texts[at : at + len(script)]
            at += len(script)
            answers.append(mine + ["panic"] * (len(script) - len(mine)))
            if len(mine) < len(script):
                break
    return answers


def _aloud(lines: list[str]) -> str:
    """This core's text of the last of these directives, with what `log-level=none` hides."""
    environment = Environment()
    text = ""
    for line in (*lines[:-1], lines[-1].replace(" log-level=none", "")):
        directive, _, given = line.partition("|")
        text = environment.handle(parse_directive(directive, given))
    return text


def _show(number: int, script: list[str], theirs: str, ours: str) -> None:
    print(f"script {number}, directive {len(script) - 1}:")
    print("\n".join(f"    {line}" for line in script))
    print("\n".join(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), "etcd", "this core", lineterm="")))


def record(oracle: Path) -> int:
    """Write the expected text of every script from the harness; how many there are."""
    paths = sorted(SCRIPTS.glob("*.txt"))
    for path in paths:
        script = parse_script(path.read_text())
        lines = [f"reset heartbeat-tick={script.heartbeat_tick}"]
        lines.extend(case.line + (f"|{case.input}" if case.input else "") for case in script.cases)
        outputs = ask(oracle, lines)
        if len(outputs) != len(script.cases) or "panic" in outputs:
            raise SystemExit(f"{path.name}: the harness stopped at {script.cases[len(outputs) - 1].line!r}")
        path.write_text(render_script(script, outputs))
    return len(paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000, help="directives at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60, help="directives of one script")
    parser.add_argument("--oracle", type=Path, help="directory of the harness")
    parser.add_argument("--record", action="store_true", help="write the expected text of the scripts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            oracle = find_oracle(options.oracle, Path(scratch))
        except Missing as exception:
            print(f"skipped: {exception}")
            print(json.dumps({"target": "raft-oracle", "ok": False, "skipped": str(exception)}))
            return 2
        if options.record:
            print(f"{record(oracle)} scripts recorded")
            return 0
        figures = compare(oracle, options.seed, options.n, options.steps)
    ok = figures["differences"] == 0
    print(json.dumps({"target": "raft-oracle", "ok": ok, "seed": options.seed, **figures}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
