"""The shell: what it makes of text and times, and what its users see in a terminal, over pipes, on a command line."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.tools.cli import BadUsage, parse_arguments
from iotdb_cluster.tools.cli_connection import Connection, Disconnected, PageColumn, Refused, ResultPage, Results
from iotdb_cluster.tools.cli_tables import lines_of, repaged
from iotdb_cluster.tools.cli_text import is_open, statements
from iotdb_cluster.tools.cli_times import TimeFormat, check_pattern

ROOT = Path(__file__).parents[2]
WAIT_S = 60
SEEN_MAX = 1 << 20  # characters that a terminal keeps of what nobody waited for


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("show version", ["show version"]),
        ("a; b;", ["a", "b"]),
        ("; ;\n\n ;", []),
        ("show version\nshow timeseries", ["show version", "show timeseries"]),
        ("select a\n  from root.x\nwhere time > 1\nquit", ["select a\n  from root.x\nwhere time > 1", "quit"]),
        ("insert into root.x(time,\n a)\n values(1,\n 'b;c')", ["insert into root.x(time,\n a)\n values(1,\n 'b;c')"]),
        ("set password 'a;\nb'; x", ["set password 'a;\nb'", "x"]),
        ("a 'it\\'s; so' b", ["a 'it\\'s; so' b"]),
        (
            "select\ns1,\ns2 from root.x;nonsense\nshow version",
            ["select\ns1,\ns2 from root.x", "nonsense", "show version"],
        ),
        ("never 'closed\nbut kept", ["never 'closed\nbut kept"]),
    ],
)
def test_statements_end_at_semicolons_and_with_lines(text: str, wanted: list[str]) -> None:
    assert list(statements(text.splitlines())) == wanted


@given(st.lists(st.text(st.characters(exclude_characters="\r\n;'\"()", exclude_categories=["Cs", "Cc", "Zl", "Zp"]))))
def test_semicolons_cut_everything(pieces: list[str]) -> None:
    wanted = [piece.strip() for piece in pieces if piece.strip()]
    assert list(statements(";".join(pieces).split("\n"))) == wanted


@given(st.text("ab;'\"()\\, \n"))
def test_any_text_is_cut_and_nothing_is_lost(text: str) -> None:
    found = list(statements(text.split("\n")))
    assert re.sub(r"[\s;]", "", "".join(found)) == re.sub(r"[\s;]", "", text)
    is_open(text)


def test_what_goes_on_is_seen() -> None:
    assert [is_open(text) for text in ("a (", "a 'b", "a,", "select", "a where")] == [True] * 5
    assert [is_open(text) for text in ("", "a", "a (b)", "a 'b'", "(; a")] == [False] * 5


# --- times ------------------------------------------------------------------------------------------------------------


@given(
    st.integers(-62_135_500_000_000, 253_402_200_000_000),
    st.sampled_from(
        [UTC, timezone(timedelta(hours=8)), timezone(-timedelta(hours=3, minutes=30)), ZoneInfo("Asia/Kolkata")]
    ),
)
def test_iso_times_are_those_of_the_library(time_ms: int, zone: Any) -> None:
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).astimezone(zone)
    wanted = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert TimeFormat("default", "ms", zone).text(time_ms) == wanted


def test_times_beyond_dates_and_of_finer_precision() -> None:
    ns, us = TimeFormat("iso8601", "ns", UTC), TimeFormat("ISO8601", "us", UTC)
    assert ns.text(1_609_459_200_000_000_001) == "2021-01-01T00:00:00.000000001Z"
    assert us.text(-1) == "1969-12-31T23:59:59.999999Z"
    edges = TimeFormat("default", "ms", timezone(timedelta(hours=1)))
    assert edges.text((1 << 63) - 1) == "+292278994-08-17T08:12:55.807+01:00"
    assert edges.text(-(1 << 63)) == "-292275055-05-16T17:47:04.192+01:00"
    assert TimeFormat("long", "ms", UTC).text(-5) == "-5"


def test_date_patterns() -> None:
    def text(pattern: str, precision: str = "ms", scale: int = 1) -> str:
        check_pattern(pattern)
        return TimeFormat(pattern, precision, timezone(timedelta(hours=8))).text(1_609_462_801_234 * scale)

    assert text("yyyy-MM-dd") == "2021-01-01"
    assert text("yyyy-MM-dd HH:mm:ss.SSS XXX") == "2021-01-01 09:00:01.234 +08:00"
    assert text("yyyy-MM-dd HH:mm:ss.SSS", "ns", 1_000_000) == "2021-01-01 09:00:01.234"
    assert text("E, d MMM yy h 'o''clock' a Z") == "Fri, 1 Jan 21 9 o'clock AM +0800"
    with pytest.raises(ValueError, match="Illegal pattern character 'b'"):
        check_pattern("bogus")
    with pytest.raises(ValueError, match="Unterminated quote"):
        check_pattern("yyyy 'at")


# --- tables -----------------------------------------------------------------------------------------------------------


def page() -> ResultPage:
    columns = [
        PageColumn("Time", Column.of(DataType.INT64, [1, 2]), True),
        PageColumn("t", Column.of(DataType.TEXT, ["漢字", "a\nb"])),
        PageColumn("d", Column.of(DataType.DOUBLE, [1e10, None])),
    ]
    return ResultPage(columns, 2)


def test_tables_are_as_wide_as_their_widest_cell() -> None:
    times = TimeFormat("long", "ms", UTC)
    assert lines_of(page(), "table", times, True) == [
        "+----+----+------+",
        "|Time|   t|     d|",
        "+----+----+------+",
        "|   1|漢字|1.0E10|",
        "|   2|a\\nb|  null|",
        "+----+----+------+",
    ]
    assert lines_of(page(), "csv", times, True) == ["Time,t,d", "1,漢字,1.0E10", '2,"a', 'b",']
    assert [json.loads(line)["d"] for line in lines_of(page(), "json", times, True)] == [1e10, None]


@given(st.lists(st.integers(1, 7), max_size=6), st.integers(0, 9))
def test_pages_hold_the_same_rows(blocks: list[int], rows: int) -> None:
    made, at = [], 0
    for count in blocks:
        made.append(ResultPage([PageColumn("n", Column.of(DataType.INT64, list(range(at, at + count))))], count))
        at += count
    pages = list(repaged(iter(made), rows))
    assert [cell for one in pages for cell in one.columns[0].cells.tolist()] == list(range(at))
    assert [one.rows for one in pages] == ([len(b) for b in _chunks(list(range(at)), rows)] if rows else blocks)


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- the command line -------------------------------------------------------------------------------------------------


def test_arguments() -> None:
    found = parse_arguments(["-h", "a", "-p", "1", "-u", "me", "-pw", "x", "-maxPRC", "-1", "-c", "-e", "'a", "b'"])
    assert (found.host, found.port, found.user, found.password, found.page_rows) == ("a", 1, "me", "x", 0)
    assert (found.text, found.compact) == ("a b", True)
    assert parse_arguments([]).password == "root"
    assert parse_arguments(["-pw"]).password is None
    assert parse_arguments(["-pw", "-u", "x"]).password is None
    assert parse_arguments(["-e"]).text is None
    for words in (["-x"], ["-p"], ["-p", "x"], ["-maxPRC", "x"], ["-format", "x"], ["stray"]):
        with pytest.raises(BadUsage):
            parse_arguments(words)


# --- at a server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(processes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with processes.Processes(tmp_path_factory.mktemp("cli"), nodes=1) as made:
        yield made
    assert made.complaints() == []


@pytest.fixture
def port(node: Any) -> str:
    return str(node.ports[0])


def cli(*words: str, given: str | None = None) -> tuple[int, str]:
    """(exit code, all that is printed); `given` goes in through a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "iotdb_cluster.tools.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, re.sub(r"It costs \d+\.\d{3}s", "It costs", done.stdout)


def test_one_statement_and_exit(port: str) -> None:
    code, out = cli("-p", port, "-e", "show version")
    assert (code, out.splitlines()) == (
        0,
        [
            "+---------------+",
            "|        version|",
            "+---------------+",
            "|         0.12.5|",
            "+---------------+",
            "Total line number = 1",
            "It costs",
        ],
    )
    code, out = cli("-p", port, "-e", "nonsense; show fetch_size")
    assert code == 1, "one of them failed"
    assert out.startswith(
        "Msg: 401: Error occurred while parsing SQL to physical plan: line 1:0 mismatched input 'nonsense'"
    )
    assert out.endswith("Current fetch size: 1000\n")


def test_tables_of_all_kinds_and_pages(port: str) -> None:
    made = (
        "insert into root.cli.d(timestamp, b, i, t) values(1, true, 1, 'one; two'); "
        "insert into root.cli.d(timestamp, i) values(1609459200000, 2)"
    )
    assert cli("-p", port, "-e", made) == (0, "Msg: The statement is executed successfully.\n" * 2)
    _, out = cli("-p", port, "-c", "-e", "select b, t, i from root.cli.d")
    assert out.splitlines()[1:6] == [
        "|                    Time|root.cli.d.b|root.cli.d.t|root.cli.d.i|",
        "+------------------------+------------+------------+------------+",
        "|1970-01-01T00:00:00.001Z|        true|    one; two|         1.0|",
        "|2021-01-01T00:00:00.000Z|        null|        null|         2.0|",
        "+------------------------+------------+------------+------------+",
    ]
    _, out = cli("-p", port, "-disableISO8601", "-maxPRC", "1", "-e", "select i from root.cli.d")
    assert out.count("It costs") == 1
    assert out.count("|root.cli.d.i|") == 2
    assert "|1609459200000|" in out
    assert out.endswith("Total line number = 2\n")
    _, out = cli("-p", port, "-e", "select b, i from root.cli.d disable align")
    head = [name.strip() for name in out.splitlines()[1].split("|")[1:-1]]
    assert head == ["Time", "root.cli.d.b", "Time", "root.cli.d.i"]
    assert cli("-p", port, "-e", "select nothing from root.cli.d")[1].splitlines()[-2:] == ["Empty set.", "It costs"]
    _, out = cli("-p", port, "-format", "csv", "-e", "select last t from root.cli.d")
    assert out == "Time,timeseries,value,dataType\n1970-01-01T00:00:00.001Z,root.cli.d.t,one; two,TEXT\n"


def test_statements_from_a_pipe_and_from_a_file(port: str, tmp_path: Path) -> None:
    text = (
        "set time_display_type=yyyy-MM-dd\nset fetch_size=1\nselect i\n  from root.cli.d\n"
        "show cluster\nset time_zone=+08:00\nshow time_zone\nset time_zone=bogus\nset max_display_num=x\nhelp\n"
    )
    code, out = cli("-p", port, given=text + "quit\nnever reached\n")
    assert code == 1
    assert "IoTDB>" not in out
    assert "|1970-01-01|" in out
    assert "Msg: 401:" in out, "show cluster is the server's affair"
    assert "Current time zone: +08:00\n" in out
    assert "Time zone format error: 403: [SET_TIME_ZONE_ERROR]" in out
    assert 'Max display number format error, For input string: "x"' in out
    assert "never" not in out
    file = tmp_path / "all.sql"
    file.write_text("show version;\nshow fetch_size")
    code, out = cli("-p", port, "-f", str(file))
    assert (code, out.splitlines()[-1]) == (0, "Current fetch size: 1000")


def test_who_cannot_log_in_is_told_why(port: str) -> None:
    code, out = cli("-p", port, "-u", "root", "-pw", "wrong", "-e", "show version")
    assert (code, out) == (
        1,
        "IoTDB> can't execute sql because600: Authentication failed.\n"
        f"IoTDB> 600: Authentication failed. Host is 127.0.0.1, port is {port}.\n",
    )
    code, out = cli("-p", "1", given="show version")
    assert code == 1
    assert out.startswith("IoTDB> Connection Error, please check whether the network is available or the server has")
    code, out = cli("-maxPRC", "many")
    assert code == 1
    assert out.startswith("IoTDB> error format of max print row count, it should be an integer number")
    assert cli("-help")[0] == 0


def test_a_reader_that_has_enough_is_no_error(port: str) -> None:
    for words in ("-help", f"-p {port} -maxPRC 0 -e show functions"):
        line = f"set -o pipefail; {sys.executable} -m iotdb_cluster.tools.cli {words} | head -1"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_import(port: str, tmp_path: Path) -> None:
    good = tmp_path / "good.csv"
    good.write_text(
        'Time,root.imp.d.i(INT64),root.imp.d.t,root.imp.d.f\n1,5,"a, ""b""",1.5\n1970-01-01T00:00:00.002Z,,c,\n'
    )
    code, out = cli("-p", port, "-e", f"import {good}; select i, t, f from root.imp.d")
    assert code == 0
    assert out.startswith(f"{good}\nImport completely!\n")
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|1970")]
    assert [[cell.strip() for cell in row[1:]] for row in rows] == [["5", 'a, "b"', "1.5"], ["null", "c", "null"]]
    bad = tmp_path / "bad.csv"
    bad.write_text(
        "Time,Device,i(INT32),t(TEXT)\n1,root.imp.e,1,x\n2,root.imp.e,2.5,y\n3,root.imp.f,3,z\n4,root.imp.e,4\n"
    )
    code, out = cli("-p", port, "-e", f"import {bad}")
    assert code == 1
    assert "Line '3', column 'root.imp.e.i': '2.5' can't convert to 'INT32'" in out
    assert "2 of 4 rows were imported" in out
    assert (
        tmp_path / "bad.csv.failed"
    ).read_text() == "Time,Device,i(INT32),t(TEXT)\n2,root.imp.e,2.5,y\n4,root.imp.e,4\n"
    assert cli("-p", port, "-e", "import /no/such.csv") == (1, "/no/such.csv\nFile not found!\n")


# --- in a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """The shell on a pseudo terminal, as a user has it."""

    def __init__(self, port: str, home: Path) -> None:
        self.pid, self._master = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            env = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm",
                "COLUMNS": "160",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "IOTDB_HISTORY": str(home / "history"),
            }
            os.execve(sys.executable, [sys.executable, "-m", "iotdb_cluster.tools.cli", "-p", port], env)
        self._seen = ""

    def expect(self, text: str) -> str:
        """All that came up to the text and with it, without the terminal's own codes."""
        deadline = time.monotonic() + WAIT_S
        looked = 0  # what comes by the megabyte is looked at once
        while self._seen.find(text, looked) < 0:
            if len(self._seen) > SEEN_MAX:
                self._seen = self._seen[-len(text) :]
            looked = max(0, len(self._seen) - len(text))
            assert time.monotonic() < deadline, f"{text!r} did not come: {self._seen[-800:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    part = os.read(self._master, 65_536).decode(errors="replace")
                except OSError:
                    part = ""
                assert part, f"it ended before {text!r}: {self._seen[-800:]!r}"
                self._seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r", "", part)
        at = self._seen.index(text) + len(text)
        found, self._seen = self._seen[:at], self._seen[at:]
        return found

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def exit_code(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    os.read(self._master, 65_536)
                except OSError:
                    time.sleep(0.01)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it does not end")

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._master)


@pytest.fixture
def terminal(port: str, tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    made: list[Terminal] = []

    def start() -> Terminal:
        made.append(Terminal(port, tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_a_session_in_a_terminal(terminal: Callable[[], Terminal], tmp_path: Path) -> None:
    shell = terminal()
    assert "version 0.12.5" in shell.expect("login successfully")
    shell.expect("IoTDB>")
    shell.type("insert into root.tty.d(timestamp, s) values(1,\r1)\r")
    shell.expect("Msg: The statement is executed successfully.")
    shell.type("insert into root.tty.d(timestamp, s) values(2, 2)\r")
    shell.expect("Msg: The statement is executed successfully.")
    shell.type("set max_display_num=1\r")
    shell.expect("Max display number has set to 1")
    shell.type("select s from root.tt\t")
    shell.expect("y")  # completed
    shell.type(".d\r")
    shell.expect("Reach the max_display_num = 1. Press ENTER to show more, input 'q' to quit.")
    shell.type("\r")
    shell.expect("Total line number = 2")
    pasted = "; select count(s)\nfrom root.tty.d\nwhere time > 1\nshow time_display_type"
    shell.type(f"show fetch_size\x1b[200~{pasted}\x1b[201~\r")
    shell.expect("Current fetch size: 1000")
    shell.expect("|count(root.tty.d.s)|")
    shell.expect("Current time format: default")
    shell.type("alter user root set password 'root'\r")
    shell.expect("Msg: The statement is executed successfully.")
    shell.type("half a line\x03")
    shell.type("quit\r")
    assert shell.exit_code() == 0
    kept = (tmp_path / "history").read_text()
    assert "select s from root.tty.d" in kept
    assert "password" not in kept
    assert "half" not in kept


def running(port: str) -> list[bytes]:
    """The statements of the process list."""
    connection = Connection("127.0.0.1", int(port))
    try:
        connection.open("root", "root", "UTC")
        found = connection.execute("SHOW QUERY PROCESSLIST")
        assert isinstance(found, Results)
        return [text for page in found.pages() for text in page.columns[2].cells.tolist()]
    finally:
        connection.close()


def test_ctrl_c_ends_what_runs(terminal: Callable[[], Terminal], port: str) -> None:
    """Two billion rows on the screen, or what is on the way of them: one key ends it, here and at the server."""
    cli("-p", port, "-e", "insert into root.tty.c(timestamp, s) values(1, 1)")
    shell = terminal()
    shell.expect("login successfully")
    shell.expect("IoTDB>")
    shell.type("set max_display_num=0\r")
    shell.expect("Max display number has set to 0")
    shell.type("select count(s) from root.tty.c group by ([0, 2100000000), 1ms)\r")
    shell.expect("1970-01-01T00:00:02.000")
    assert running(port) == [b"select count(s) from root.tty.c group by ([0, 2100000000), 1ms)"]
    shell.type("\x03")
    shell.expect("Msg: ")
    shell.type("show version\r")
    shell.expect("0.12.5")
    assert running(port) == []
    shell.type("\x04")
    assert shell.exit_code() == 0


class Interrupted(Connection):
    """Ctrl-C so many times while the first block but one is asked for: before that is sent, and behind it."""

    def __init__(self, port: str, before: int, behind: int) -> None:
        super().__init__("127.0.0.1", int(port))
        self._times = [before, behind]
        self.open("root", "root", "UTC")

    def send(self, method: str, *arguments: Any) -> None:
        before, behind = self._times if method == "fetchResults" else (0, 0)
        for _ in range(before):
            signal.raise_signal(signal.SIGINT)
        super().send(method, *arguments)
        if before or behind:
            self._times = [0, 0]
        for _ in range(behind):
            signal.raise_signal(signal.SIGINT)


ROWS_TO_CANCEL = "select count(s) from root.tty.c group by ([0, 100000), 1ms)"


@pytest.mark.parametrize(("before", "behind"), [(1, 0), (0, 1)])
def test_ctrl_c_parts_no_call_from_its_answer(port: str, before: int, behind: int) -> None:
    cli("-p", port, "-e", "insert into root.tty.c(timestamp, s) values(1, 1)")
    connection = Interrupted(port, before, behind)
    results = connection.execute(ROWS_TO_CANCEL)
    assert isinstance(results, Results)
    with pytest.raises(Refused, match=r"was killed|Has not executed query"):
        list(results.pages())
    version = connection.execute("show version")
    assert isinstance(version, Results)
    assert [page.columns[0].cells.tolist() for page in version.pages()] == [[b"0.12.5"]]
    connection.close()


def test_ctrl_c_twice_gives_the_connection_up(port: str) -> None:
    cli("-p", port, "-e", "insert into root.tty.c(timestamp, s) values(1, 1)")
    connection = Interrupted(port, 0, 2)
    results = connection.execute(ROWS_TO_CANCEL)
    assert isinstance(results, Results)
    with pytest.raises(Disconnected):
        list(results.pages())
    with pytest.raises(Disconnected):
        connection.execute("show version")


def test_a_server_that_goes_and_comes_back(node: Any, terminal: Callable[[], Terminal]) -> None:
    shell = terminal()
    shell.expect("login successfully")
    node.kill(1)
    shell.type("show version\r")
    shell.expect("Connection Error, please check whether the network is available or the server has started.")
    node.launch(1)
    node.wait()
    shell.type("show version\r")
    shell.expect("Total line number = 1")
    shell.type("exit\r")
    assert shell.exit_code() == 0
