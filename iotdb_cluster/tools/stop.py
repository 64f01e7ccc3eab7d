"""`stop-node.sh [CONF_DIR] [-p PORT] [-t SECONDS]`: ends a node by its pid file and waits until it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from iotdb_cluster.cluster.configuration import BadConfiguration
from iotdb_cluster.tools.admin_client import AdminUnreachable, ask
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DONE, UNREACHABLE
from iotdb_cluster.tools.homes import home_of, is_alive, running_node

__all__ = ["main", "stop"]


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    try:
        return stop.main(args=list(sys.argv[1:] if words is None else words), standalone_mode=False) or DONE
    except (click.ClickException, BadConfiguration) as error:
        click.echo(str(error), err=True)
        return BAD_ARGUMENTS


@click.command()
@click.argument("conf", type=click.Path(path_type=Path), required=False)
@click.option("-p", "--port", type=int, help="The node's nodetool port, where it has no pid file at hand.")
@click.option("-t", "--seconds", type=float, default=30.0, show_default=True, help="Wait at most so long.")
def stop(conf: Path | None, port: int | None, seconds: float) -> int:
    """End the node whose conf directory is CONF (default: the installation's own)."""
    pid = _pid_by_port(port) if port is not None else _pid_by_file(conf)
    if pid is None:
        click.echo("No IoTDB server to stop")
        return BAD_ARGUMENTS
    with contextlib.suppress(ProcessLookupError):  # it ended in between: what was wanted
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            click.echo(f"the node (pid {pid}) still runs after {seconds:.0f} s: look at its log", err=True)
            return UNREACHABLE
        time.sleep(0.05)
    click.echo(f"the node (pid {pid}) has ended")
    return DONE


def _pid_by_file(conf: Path | None) -> int | None:
    return running_node(home_of(conf))


def _pid_by_port(port: int) -> int | None:
    try:
        return int(ask("127.0.0.1", port, {"command": "health"})["pid"])
    except (AdminUnreachable, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
