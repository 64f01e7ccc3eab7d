"""Planted bugs: each patch of this directory must turn the suite that it names red, and without it that suite is green.

    python tests/mutants/run.py [--only NAME ...] [--list]

A patch begins with two lines, `Bug: what is wrong` and `Suite: python -m pytest TEST ...` (or another command of this
repository that ends with 1 where it finds something), then comes what `git diff -U1` prints. Each runs in a copy of the
tree in a temporary directory, which goes again, with every process that was started in it. Found means: the suite
ended with 1 (a program that cannot start does not count) within `LIMIT_S`. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT_S = 600  # of one run of a suite
TAIL_LINES = 40  # shown of a suite that did not do what it should
MARK = "IOTDB_MUTANTS_OF"  # in the environment of all that is started: what is left over is known by it
PYTEST = ("-m", "pytest")
# A planted bug is to be found each time: hypothesis draws the same examples, and no run leaves some for the next.
PYTEST_OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={LIMIT_S // 2}")


class Broken(Exception):
    """The patch cannot be used: its head or its text is not as it must be."""


@dataclass(frozen=True)
class Mutant:
    name: str
    path: Path
    bug: str
    suite: tuple[str, ...]  # the command, `python` standing for this interpreter

    @property
    def files(self) -> list[str]:
        """Paths that the patch changes."""
        return re.findall(r"^\+\+\+ b/(\S+)$", self.path.read_text(), re.MULTILINE)


def load(path: Path) -> Mutant:
    """Raises Broken."""
    bug, suite, *_ = [*path.read_text().splitlines(), "", ""]
    if not bug.startswith("Bug: ") or not suite.startswith("Suite: python "):
        raise Broken(f"{path.name}: the first two lines are not 'Bug: ...' and 'Suite: python ...'")
    return Mutant(path.stem, path, bug.removeprefix("Bug: "), tuple(shlex.split(suite.removeprefix("Suite: "))))


def mutants() -> list[Mutant]:
    return [load(path) for path in sorted(HERE.glob("*.patch"))]


def git_apply(tree: Path, mutant: Mutant, *options: str) -> str:
    """What git says against it; empty where the patch applies (and has been, without `--check`)."""
    # Where the tree is no repository, one around it must not count: paths would be taken from there.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    command = ["git", "apply", *options, str(mutant.path)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"git apply ended with {done.returncode}") if done.returncode else ""


# --- the copy ---------------------------------------------------------------------------------------------------------
def copy_tree(target: Path) -> None:
    """What is tracked, and what is new and not ignored, as it stands now; the environment by a link."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in names.split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    if (ROOT / ".venv").exists():
        (target / ".venv").symlink_to((ROOT / ".venv").resolve())


def forget_compiled(tree: Path, mutant: Mutant) -> None:
    """A compiled file is known by time in seconds and size; a patch may change neither."""
    for name in mutant.files:
        path = tree / name
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()


def run_suite(tree: Path, suite: tuple[str, ...]) -> tuple[int | None, str]:
    """(exit code, or None where the time was up; the end of what it printed). Nothing of it goes on afterwards."""
    words = list(suite[1:])
    if tuple(words[:2]) == PYTEST:
        words[2:2] = PYTEST_OPTIONS
    environment = {**os.environ, "PYTHONPATH": str(tree), MARK: str(tree)}
    with tempfile.TemporaryFile(mode="w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all(str(tree))
            process.wait()
        output.seek(0)
        return code, "\n".join(output.read().splitlines()[-TAIL_LINES:])


def end_all(tree: str) -> None:
    """kill -9 whatever was started for this tree, by its environment, until none is left."""
    mark = f"{MARK}={tree}".encode()
    while True:
        found = False
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found = True
            except OSError:
                continue  # gone meanwhile, a zombie, or another user's
        if not found:
            return
        time.sleep(0.01)


# --- all of them ------------------------------------------------------------------------------------------------------
def try_mutant(tree: Path, mutant: Mutant, green: dict[tuple[str, ...], bool]) -> str:
    """'found', or what is wrong."""
    if mutant.suite not in green:
        code, tail = run_suite(tree, mutant.suite)
        green[mutant.suite] = code == 0
        if code != 0:
            print(tail)
    if not green[mutant.suite]:
        return "the suite is not green without the patch"
    refused = git_apply(tree, mutant)
    if refused:
        return f"the patch does not apply: {refused}"
    forget_compiled(tree, mutant)
    code, tail = run_suite(tree, mutant.suite)
    refused = git_apply(tree, mutant, "-R")
    forget_compiled(tree, mutant)
    if refused:
        raise Broken(f"{mutant.name} cannot be taken back: {refused}")
    if code == 1:
        return "found"
    print(tail)
    return "NOT FOUND" if code == 0 else f"the suite did not end in {LIMIT_S} s" if code is None else f"exit {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these; default: all")
    parser.add_argument("--list", action="store_true", help="name them and what finds them, and end")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if not options.only or mutant.name in options.only]
    unknown = set(options.only) - {mutant.name for mutant in chosen}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.bug}\n    {shlex.join(mutant.suite)}")
        return 0
    print(f"{len(chosen)} planted bugs, each by the suite that its patch names; at most {LIMIT_S} s a run of a suite")
    begun, revision = time.monotonic(), commit()
    missed: dict[str, str] = {}
    green: dict[tuple[str, ...], bool] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name) / "tree"
        copy_tree(tree)
        for mutant in chosen:
            began = time.monotonic()
            outcome = try_mutant(tree, mutant, green)
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            if outcome != "found":
                missed[mutant.name] = outcome
            print(f"{outcome}  {seconds:5.1f} s  {mutant.name}: {mutant.bug}", flush=True)
    ok = bool(chosen) and not missed
    figures = {"mutants": len(chosen), "found": len(chosen) - len(missed), "missed": missed}
    timing = {"slowest_seconds": round(slowest, 1), "seconds": round(time.monotonic() - begun, 1)}
    print(json.dumps({"target": "mutants", "ok": ok, **figures, "seed": 0, "commit": revision, **timing}))
    return 0 if ok else 1


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
