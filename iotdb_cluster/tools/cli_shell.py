"""What the shell does with a statement: its own commands, and everything else at the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from thriftpy2.thrift import TApplicationException

from iotdb_cluster.rpc.zones import zone_info
from iotdb_cluster.tools.cli_connection import Connection, Disconnected, Refused, ResultPage, Results
from iotdb_cluster.tools.cli_import import import_csv
from iotdb_cluster.tools.cli_tables import lines_of, repaged
from iotdb_cluster.tools.cli_times import TimeFormat, check_pattern

__all__ = ["LOCAL_COMMANDS", "NOT_THERE", "PROMPT", "Shell"]

PROMPT = "IoTDB> "
NOT_THERE = "Connection Error, please check whether the network is available or the server has started."
DONE = "Msg: The statement is executed successfully."
PLAIN_SUCCESS = "Execute successfully"
FETCH_ROWS_MAX = 2_147_483_647
HELP = [
    ("<your-sql>", "Execute your sql statement"),
    ("show timeseries", "Show all time series"),
    ("set time_display_type=xxx", "long, default, ISO8601, or a pattern such as yyyy-MM-dd HH:mm:ss"),
    ("show time_display_type", "Show time display type"),
    ("set time_zone=xxx", "+08:00, Asia/Shanghai"),
    ("show time_zone", "Show time zone"),
    ("set fetch_size=xxx", "Rows of one call"),
    ("show fetch_size", "Show fetch size"),
    ("set max_display_num=xxx", "Rows of one page, 0 for all without asking"),
    ("import PATH", "Import a CSV file"),
    ("quit, exit", "Leave"),
]
LOCAL_COMMANDS = (*(command.partition("=")[0].partition(" PATH")[0] for command, _ in HELP[1:-1]), "quit", "exit")


class Quit(Exception):
    """The user wants to leave."""


class Shell:
    """One user's session. `run` answers whether the statement succeeded."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        out: TextIO,
        *,
        page_rows: int = 1_000,
        time_kind: str = "default",
        style: str = "table",
        ask: Callable[[str], str] | None = None,
    ) -> None:
        """`connect` opens a connection and logs in; `ask` asks before each further page, None never does."""
        self._connect = connect
        self._out = out
        self._page_rows = page_rows
        self._time_kind = time_kind
        self._style = style
        self._ask = ask
        self._fetch_rows = 1_000
        self._zone = ""
        self._connection: Connection | None = None
        self._precision = "ms"
        self._version = ""
        self._local: list[tuple[str, Callable[[str], bool]]] = [
            ("quit", self._quit),
            ("exit", self._quit),
            ("help", self._help),
            ("set time_display_type", self._set_time_display_type),
            ("show time_display_type", self._show_time_display_type),
            ("show timestamp_display", self._show_time_display_type),
            ("set time_zone", self._set_time_zone),
            ("show time_zone", self._show_time_zone),
            ("set fetch_size", self._set_fetch_size),
            ("show fetch_size", self._show_fetch_size),
            ("set max_display_num", self._set_max_display_num),
            ("import", self._import),
        ]

    # --- the connection -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """What the server says that it is."""
        return self._version

    @property
    def connection(self) -> Connection:
        """Opened anew where it was lost; raises Disconnected or Refused."""
        if self._connection is None:
            made = self._connect()
            made.fetch_rows = self._fetch_rows
            known = made.properties()
            self._version, self._precision = known.version, known.timestampPrecision
            if self._zone:
                made.set_zone(self._zone)
            self._connection = made
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lost(self, reason: object) -> None:
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        self.say(f"{PROMPT}{NOT_THERE} ({reason})")

    def say(self, *lines: str) -> None:
        for line in lines:
            self._out.write(line + "\n")
        self._out.flush()

    # --- statements ---------------------------------------------------------------------------------------------------

    def run(self, statement: str) -> bool:
        """Carry out one statement or command and print its answer; Quit where the user leaves."""
        words = " ".join(statement.split())
        for command, act in self._local:
            rest = words[len(command) :]
            if words.lower().startswith(command) and (not rest or not (rest[0].isalnum() or rest[0] == "_")):
                return self._guarded(lambda act=act, rest=rest: act(rest.strip()))  # type: ignore[misc]
        return self._guarded(lambda: self._execute(statement))

    def _guarded(self, act: Callable[[], bool]) -> bool:
        try:
            return act()
        except Refused as refused:
            self.say(f"Msg: {refused}")
        except Disconnected as error:
            self._lost(error)
        except TApplicationException as error:
            self.say(f"Msg: 500: {error.message}")
        except KeyboardInterrupt:
            self._lost("interrupted")
        return False

    def _execute(self, statement: str) -> bool:
        began = time.monotonic()
        found = self.connection.execute(statement)
        if isinstance(found, Results):
            return self._print(found, began)
        if self._style == "table":
            self.say(DONE, *([found] if found and found != PLAIN_SUCCESS else []))
        return True

    def _print(self, results: Results, began: float) -> bool:
        times = TimeFormat(self._time_kind, self._precision, zone_info(self.connection.zone()))
        total, first = 0, True
        try:
            for page in self._pages(results):
                if not first:
                    began = self._costs(began)
                    if not self._wants_more():
                        return True
                total += page.rows
                self.say(*lines_of(page, self._style, times, first))
                first = False
        except KeyboardInterrupt:
            self.say("Msg: interrupted")
            return False
        finally:
            results.close()
        if first:
            self.say(*lines_of(results.empty(), self._style, times, True))
        if self._style == "table":
            self.say(f"Total line number = {total}" if total else "Empty set.")
        self._costs(began)
        return True

    def _pages(self, results: Results) -> Iterator[ResultPage]:
        return repaged(results.pages(), self._page_rows)

    def _costs(self, began: float) -> float:
        """Say it, once a result; what was begun then does not count any more."""
        if began >= 0 and self._style == "table":
            self.say(f"It costs {time.monotonic() - began:.3f}s")
        return -1.0

    def _wants_more(self) -> bool:
        if self._ask is None or not self._page_rows:
            return True
        text = f"Reach the max_display_num = {self._page_rows}. Press ENTER to show more, input 'q' to quit."
        try:
            return self._ask(text).strip() == ""
        except (EOFError, KeyboardInterrupt):
            self.say("")
            return False

    # --- its own commands ---------------------------------------------------------------------------------------------

    def _quit(self, _: str) -> bool:
        raise Quit

    def _help(self, _: str) -> bool:
        self.say(*(f"    {command}\t {gloss}" for command, gloss in HELP))
        return True

    def _bad(self, text: str) -> bool:
        self.say(text)
        return False

    def _set_time_display_type(self, rest: str) -> bool:
        if not rest.startswith("="):
            return self._bad("Time display format error, please input like set time_display_type=ISO8601")
        kind = rest[1:].strip()
        try:
            check_pattern(kind)
        except ValueError as error:
            return self._bad(f"time display format error, {error}")
        self._time_kind = kind
        self.say(f"Time display type has set to {kind}")
        return True

    def _show_time_display_type(self, _: str) -> bool:
        self.say(f"Current time format: {self._time_kind}")
        return True

    def _set_time_zone(self, rest: str) -> bool:
        if not rest.startswith("=") or not rest[1:].strip():
            return self._bad("Time zone format error, please input like set time_zone=+08:00")
        zone = rest[1:].strip()
        try:
            self.connection.set_zone(zone)
        except Refused as refused:
            return self._bad(f"Time zone format error: {refused}")
        self._zone = zone
        self.say(f"Time zone has set to {zone}")
        return True

    def _show_time_zone(self, _: str) -> bool:
        self.say(f"Current time zone: {self.connection.zone()}")
        return True

    def _number(self, rest: str, what: str, example: str) -> int | None:
        """The number behind the equals sign; None where there is none, which was said."""
        if not rest.startswith("="):
            self.say(f"{what} format error, please input like {example}")
            return None
        try:
            return int(rest[1:].strip())
        except ValueError:
            self.say(f'{what} format error, For input string: "{rest[1:].strip()}"')
            return None

    def _set_fetch_size(self, rest: str) -> bool:
        number = self._number(rest, "Fetch size", "set fetch_size=10000")
        if number is None:
            return False
        self._fetch_rows = number if 0 < number <= FETCH_ROWS_MAX else FETCH_ROWS_MAX
        self.connection.fetch_rows = self._fetch_rows
        self.say(f"Fetch size has set to {number}")
        return True

    def _show_fetch_size(self, _: str) -> bool:
        self.say(f"Current fetch size: {self._fetch_rows}")
        return True

    def _set_max_display_num(self, rest: str) -> bool:
        number = self._number(rest, "Max display number", "set max_display_num=1000")
        if number is None:
            return False
        self._page_rows = max(0, number)
        self.say(f"Max display number has set to {number}")
        return True

    def _import(self, path: str) -> bool:
        if not path:
            self.say(
                "Please input like: import /User/myfile. Noted that your file path cannot contain any space character)"
            )
            return False
        self.say(path)
        if not Path(path).is_file():
            return self._bad("File not found!")
        return import_csv(self.connection, Path(path), self._precision, zone_info(self.connection.zone()), self.say)


def completions(connection: Connection, text: str) -> list[str]:
    """The children of the path before the last dot."""
    found: Any = connection.execute(f"SHOW CHILD PATHS {text.rpartition('.')[0]}")
    if not isinstance(found, Results):
        return []
    return [cell.decode() for page in found.pages() for cell in page.columns[0].cells.tolist()]
