"""`start-node.sh`, `add-node.sh`: one node in the foreground, until SIGTERM or SIGINT. `-r` is `remove-node.sh`."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.handlers
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from iotdb_cluster.cluster.configuration import BadConfiguration, Loaded
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.startup import OtherSettings, Refused, Removed
from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.tools.arguments import parse_arguments, read_settings
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DATA_UNUSABLE, DONE, REFUSED, UNREACHABLE
from iotdb_cluster.tools.homes import PID_FILE, REMOVED_FILE, running_node, take_pid_file
from iotdb_cluster.tools.remove import main as remove_node
from iotdb_cluster.tools.web import start_web
from iotdb_cluster.world import real_world

__all__ = ["main"]

logger = logging.getLogger("iotdb_cluster.node")

OPEN_FILES_WANTED = 65_535
BACKLOG_WANTED = 1_024
LOG_FILES_KEPT = 7
# What a turn of many groups allocates lives until the next one: the default of 700 would look at it again and again.
GC_THRESHOLDS = (50_000, 20, 20)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code; see `exits`."""
    given = list(sys.argv[1:] if words is None else words)
    if "-r" in given:
        given.remove("-r")
        return remove_node(given)
    try:
        arguments = parse_arguments(given)
        loaded = read_settings(arguments)
    except (BadConfiguration, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS
    home = arguments.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        pid_file = take_pid_file(home)
        _start_logging(home / "logs")
    except BlockingIOError:
        print(f"{home} is used by the node that runs with pid {running_node(home)}", file=sys.stderr)
        return DATA_UNUSABLE
    except OSError as error:
        print(f"the node does not start: {error}", file=sys.stderr)
        return DATA_UNUSABLE
    for notice in loaded.notices:
        logger.warning(notice)
    if arguments.print_gc:
        logger.info("printgc has no effect: there is no JVM whose collections could be logged")
    _prepare_process()
    with pid_file:
        code = _run(loaded, lambda: read_settings(arguments), home / REMOVED_FILE)
        (home / PID_FILE).unlink(missing_ok=True)
    return code


def _run(loaded: Loaded, read_again: Callable[[], Loaded], removed: Path) -> int:
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    try:
        with runner:
            runner.run(_serve(loaded, read_again))
    except Removed as error:
        logger.warning("the node stops for good: %s", error)
        removed.write_text(f"{error}\n")
        return REFUSED
    except Refused as error:
        logger.error("the node does not start: %s", error)
        return REFUSED
    except (CorruptData, OtherSettings, BlockingIOError) as error:
        logger.error("the data directory cannot be used: %s", error)
        return DATA_UNUSABLE
    except SystemFault as error:
        logger.error("the node stops: %s", error)
        return UNREACHABLE
    except OSError as error:
        logger.error("the node does not start: %s", error)
        return BAD_ARGUMENTS
    except Exception:
        logger.critical("the node stops because of a bug of its own", exc_info=True)
        return DATA_UNUSABLE
    return DONE


async def _serve(loaded: Loaded, read_again: Callable[[], Loaded]) -> None:
    world = real_world()
    node = Node(world, loaded.settings, {"pid": os.getpid()}, read_again)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.request_stop)
    web = None
    try:
        web = start_web(loaded.settings.web_port, node.figures, lambda: node.serving)
    except OSError as error:
        logger.warning("web port %d: %s; the node runs without", loaded.settings.web_port, error)
    try:
        await node.run(on_serving=lambda: gc.freeze())
    finally:
        if web is not None:
            web.shutdown()
        world.workers.close()


def _prepare_process() -> None:
    sys.setswitchinterval(0.001)
    gc.set_threshold(*GC_THRESHOLDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(OPEN_FILES_WANTED, hard) if hard != resource.RLIM_INFINITY else OPEN_FILES_WANTED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < OPEN_FILES_WANTED:
        logger.warning("the limit of open files is %d; %d is recommended (ulimit -n)", wanted, OPEN_FILES_WANTED)
    backlog = Path("/proc/sys/net/core/somaxconn")
    if backlog.exists() and int(backlog.read_text()) < BACKLOG_WANTED:
        logger.warning("net.core.somaxconn is below %d: bursts of connections may be refused", BACKLOG_WANTED)


def _start_logging(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    form = logging.Formatter("%(asctime)s [%(threadName)s] %(levelname)s %(name)s:%(lineno)d - %(message)s")
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stdout),
        logging.handlers.TimedRotatingFileHandler(
            directory / "log_all.log", when="midnight", backupCount=LOG_FILES_KEPT, encoding="utf-8"
        ),
    ]
    for handler in handlers:
        handler.setFormatter(form)
    logging.basicConfig(level=os.environ.get("IOTDB_LOG_LEVEL", "INFO").upper(), handlers=handlers, force=True)


if __name__ == "__main__":
    sys.exit(main())
