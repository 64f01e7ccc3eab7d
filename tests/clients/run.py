"""The stock 0.12 clients against a cluster of real processes: what is installed is built and run.

    python tests/clients/run.py [java] [go] [python]

starts three nodes on free ports, builds the programs of this directory outside the repository (Java needs a JDK, Maven
and its repository, Go needs its module proxy), runs each against all ports, and prints one JSON object a line:
{"target": ..., "ok": ...}, or "skipped" with the reason where a tool is missing. Exit 0 only where nothing failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "cluster")]

from processes import Processes  # noqa: E402 - the directory above must be on the path first

BUILD_S_MAX = 300
RUN_S_MAX = 300
LINES_SHOWN = 40
HOST = "127.0.0.1"
JAVA_PARTS = ["session", "leaders", "pool", "jdbc", "big", "failover"]
OPENED = "--add-opens=java.base/java.nio=ALL-UNNAMED"  # the clients' Thrift needs it since Java 17


class Missing(Exception):
    """A tool that the target needs is not installed."""


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise Missing(f"no {tool} here")


def build(command: list[str], directory: Path) -> None:
    """Run a build to its end; its output is the error's text."""
    made = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(made.stdout + made.stderr).strip()[-2_000:]}")


def run_java(cluster: Processes, scratch: Path) -> dict[str, Any]:
    need("java", "javac", "mvn")
    classes = scratch / "java"
    path = scratch / "classpath"
    goals = ["compile", "dependency:build-classpath", f"-Dmdep.outputFile={path}", f"-Dinto={classes}"]
    build(["mvn", "-q", "-B", *goals], HERE / "java")
    found = f"{classes / 'classes'}{os.pathsep}{path.read_text().strip()}"
    return run(["java", OPENED, "-cp", found, "Clients", HOST, ports(cluster), *JAVA_PARTS], cluster)


def run_go(cluster: Processes, scratch: Path) -> dict[str, Any]:
    need("go")
    build(["go", "build", "-o", str(scratch / "clients"), "."], HERE / "go")
    return run([str(scratch / "clients"), HOST, ports(cluster)], cluster)


def run_python(cluster: Processes, scratch: Path) -> dict[str, Any]:
    del scratch
    try:
        import iotdb.Session  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise Missing(f"no stock Python client here: {error}") from None
    return run([sys.executable, str(HERE / "stock_python.py"), HOST, ports(cluster)], cluster)


def ports(cluster: Processes) -> str:
    return ",".join(str(port) for port in cluster.ports)


def run(command: list[str], cluster: Processes) -> dict[str, Any]:
    """The program's end. A line "KILL port" of it kills that node; then it is told to go on."""
    lines: list[str] = []
    killed: list[int] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        alarm = threading.Timer(RUN_S_MAX, program.kill)
        alarm.start()
        for line in program.stdout:
            lines.append(line.rstrip())
            if line.startswith("KILL "):
                killed.append(cluster.ports.index(int(line.split()[1])) + 1)
                cluster.kill(killed[-1])
                program.stdin.write("\n")
                program.stdin.flush()
        code = program.wait()
        alarm.cancel()
    for number in killed:
        cluster.launch(number)
    if killed:
        cluster.wait()
    if code == 0:
        return {"ok": True, "said": lines[-1] if lines else ""}
    return {"ok": False, "code": code, "said": lines[-LINES_SHOWN:]}


TARGETS: dict[str, Callable[[Processes, Path], dict[str, Any]]] = {
    "java": run_java,
    "go": run_go,
    "python": run_python,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="the stock clients against a cluster of real processes")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    targets = parser.parse_args().targets or list(TARGETS)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    good = True
    with tempfile.TemporaryDirectory(prefix="clients-") as name, Processes(Path(name) / "cluster") as cluster:
        for target in targets:
            began = time.monotonic()
            scratch = Path(name) / target
            scratch.mkdir()
            try:
                outcome = TARGETS[target](cluster, scratch)
            except Missing as why:
                outcome = {"ok": True, "skipped": str(why)}
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                outcome = {"ok": False, "error": str(error)}
            good &= bool(outcome["ok"])
            print(json.dumps({"target": target, **outcome, "seconds": round(time.monotonic() - began, 1)}), flush=True)
        complaints = cluster.complaints()
        if complaints:
            print(json.dumps({"target": "cluster", "ok": False, "said": complaints[:LINES_SHOWN]}), flush=True)
    return 0 if good and not complaints else 1


if __name__ == "__main__":
    sys.exit(main())
