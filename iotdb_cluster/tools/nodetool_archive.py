"""`nodetool.sh backup`, `restore` and `content`: long work on the node that is asked, shown while it goes on."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from iotdb_cluster.limits import MIB
from iotdb_cluster.tools.exits import REFUSED

__all__ = ["COMMANDS", "backup", "content", "restore"]

POLL_S = 0.2
LINE_S = 3.0  # between two lines where the output is no terminal
CONTENT_S = 3_600.0  # all data are read
COMMANDS = {
    "backup": "Copy the cluster into a new directory of the asked node",
    "content": "Print a digest of each storage group's content, comparable between clusters",
    "restore": "Write a backup, a directory of the asked node, into this new cluster",
}


class Asker(Protocol):
    """As `nodetool`'s."""

    as_json: bool

    def __call__(self, command: str, *, timeout_s: float = ..., **arguments: Any) -> dict[str, Any]: ...
    def show(self, answer: dict[str, Any], lines: list[str]) -> None: ...


@click.command()
@click.argument("directory")
@click.pass_obj
def backup(asker: Asker, directory: str) -> None:
    """Copy the cluster into a new directory of the asked node"""
    result = _carried_out(asker, "backup", directory)
    text = f"backup of {result.get('groups')} groups, {result.get('bytes', 0) / MIB:.1f} MiB, in {directory}"
    asker.show(result, [text])


@click.command()
@click.argument("directory")
@click.pass_obj
def restore(asker: Asker, directory: str) -> None:
    """Write a backup, a directory of the asked node, into this new cluster"""
    result = _carried_out(asker, "restore", directory)
    lines = [
        f"restored {result.get('storage_groups')} storage groups, {result.get('series')} series, "
        f"{result.get('points')} points; content equal to the backup's: {'yes' if result.get('equal') else 'NO'}"
    ]
    if result.get("left_out"):
        lines.append(f"created or deleted while the backup was taken, and left out: {', '.join(result['left_out'])}")
    asker.show(result, lines)


@click.command()
@click.pass_obj
def content(asker: Asker) -> None:
    """Print a digest of each storage group's content, comparable between clusters"""
    answer = asker("content", timeout_s=CONTENT_S)
    asker.show(answer, [f"{digest}  {path}" for path, digest in sorted(answer.get("storage_groups", {}).items())])


def _carried_out(asker: Asker, command: str, directory: str) -> dict[str, Any]:
    """Start it and show how it goes on; its result. Ends the program with exit code 3 where it failed."""
    state = asker(command, directory=directory)
    if state.get("forming"):
        asker.show(state, [])
        sys.exit(REFUSED)
    number = state["job"]
    console = Console(stderr=True)
    shown = _Bar(console) if console.is_terminal and not asker.as_json else _Lines(quiet=asker.as_json)
    with shown:
        while not state["ended"]:
            shown.show(state)
            time.sleep(POLL_S)
            state = asker("job")
            if state["job"] != number:
                click.echo(f"error: another {state['name']} has begun since: this one's end is not known", err=True)
                sys.exit(REFUSED)
    if state["failure"]:
        click.echo(f"error: {state['failure']}", err=True)
        sys.exit(REFUSED)
    return dict(state["result"])


class _Lines:
    """A line now and then."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ("", 0.0)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, state: dict[str, Any]) -> None:
        phase, now = str(state["phase"]), time.monotonic()
        if not self._quiet and (phase != self._last[0] or now - self._last[1] >= LINE_S):
            self._last = (phase, now)
            click.echo(f"{phase}: {state['done']} of {state['total']} {state['unit']}", err=True)


class _Bar:
    """A bar a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._phase = ""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, state: dict[str, Any]) -> None:
        if state["phase"] != self._phase:
            if self._progress is not None:
                self._progress.stop()
            self._phase = state["phase"]
            amount = (DownloadColumn(), TransferSpeedColumn()) if state["unit"] == "bytes" else (MofNCompleteColumn(),)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                *amount,
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._progress.add_task(self._phase)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], total=max(1, state["total"]), completed=state["done"])
