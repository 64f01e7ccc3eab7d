"""The directory of a node (`logs/`, `node.pid`, `data/`), and which process runs in it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

__all__ = ["PID_FILE", "REMOVED_FILE", "home_of", "is_alive", "running_node", "take_pid_file"]

PID_FILE = "node.pid"
REMOVED_FILE = "removed"  # why the node is no member any more: start-cluster leaves it out
LOCK_TRIES = 10


def home_of(conf: Path | None) -> Path:
    """A node's directory by its conf directory: each node of one installation has its own.

    `IOTDB_HOME` where it is set; else the parent of a directory `conf`, or a conf directory of another name itself;
    else the installation.
    """
    if os.environ.get("IOTDB_HOME"):
        return Path(os.environ["IOTDB_HOME"])
    if conf is None:
        return Path(__file__).parents[2]
    directory = conf.resolve()
    return directory.parent if directory.name == "conf" else directory


def take_pid_file(home: Path) -> IO[str]:
    """Write the process id and hold the file locked; raises BlockingIOError where another node holds it."""
    file = (home / PID_FILE).open("a+")
    for left in reversed(range(LOCK_TRIES)):  # whoever looks holds a shared lock for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not left:
                file.close()
                raise
            time.sleep(0.05)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def running_node(home: Path) -> int | None:
    """The process id of the node that runs in this directory, or None.

    The file is locked while the node lives: the number in one that was left behind may be another program's by now.
    """
    try:
        with (home / PID_FILE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and whose parent has not asked yet does not."""
    try:
        os.kill(pid, 0)
        state = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path("/proc/self").exists() else "R"
        )
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
