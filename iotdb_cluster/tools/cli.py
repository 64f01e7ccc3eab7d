"""`start-cli.sh`: the interactive shell, or statements from the command line, a file or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from getpass import getpass
from pathlib import Path

from thriftpy2.thrift import TApplicationException

from iotdb_cluster.rpc.zones import canonical_zone
from iotdb_cluster.tools.cli_connection import Connection, Disconnected, Refused
from iotdb_cluster.tools.cli_shell import NOT_THERE, PROMPT, Quit, Shell
from iotdb_cluster.tools.cli_tables import FORMATS
from iotdb_cluster.tools.cli_text import statements
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DONE

__all__ = ["main"]

INTERRUPTED = 130
FAILED = 1  # a statement failed, or nobody could log in
USAGE = """usage: ./start-cli.sh [-c] [-disableISO8601] [-e <execute>] [-f <file>] [-format <format>]
       [-h <host>] [-help] [-maxPRC <maxPrintRowCount>] [-p <port>] [-pw <password>]
       [-u <username>]
 -c                           Compact Thrift protocol instead of binary
 -disableISO8601              Display timestamp in number(optional)
 -e <execute>                 Execute statements and exit; must be the last option
 -f <file>                    Execute the statements of a file and exit
 -format <format>             table (default), csv, json or vertical
 -h <host>                    Host Name (optional, default 127.0.0.1)
 -help                        Display help information(optional)
 -maxPRC <maxPrintRowCount>   Rows of one page (optional, default 1000; 0: all)
 -p <port>                    Port (optional, default 55560)
 -pw <password>               Password (optional, default root; without a value it is asked for)
 -u <username>                User name (optional, default root)"""
HINT = "For more information, please check the following hint."
TITLE = ("---------------------", "Starting IoTDB Cli", "---------------------")


class BadUsage(Exception):
    """The command line is wrong; the message says how."""


@dataclass(slots=True)
class Arguments:
    """The command line. `password` is None where it is to be asked for, `statements` where there are none."""

    host: str = "127.0.0.1"
    port: int = 55_560
    user: str = "root"
    password: str | None = "root"
    text: str | None = None
    file: Path | None = None
    page_rows: int = 1_000
    numbers: bool = False
    compact: bool = False
    style: str = "table"
    help: bool = False


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Raises BadUsage."""
    found = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option = word.removeprefix("-") if word.startswith("--") else word
        if option == "-e":
            found.text = _unquoted(" ".join(rest)) or None
            break
        if option in ("-help", "-disableISO8601", "-c"):
            found.help |= option == "-help"
            found.numbers |= option == "-disableISO8601"
            found.compact |= option == "-c"
        elif option == "-pw":
            given = bool(rest) and (not rest[0].startswith("-") or len(rest[0]) == 1)
            found.password = rest.pop(0) if given else None
        elif option in ("-h", "-p", "-u", "-maxPRC", "-f", "-format"):
            if not rest:
                raise BadUsage(f"{word} needs a value")
            _take(found, option, rest.pop(0))
        else:
            raise BadUsage(f"{word} is not an option of this command")
    return found


def _take(found: Arguments, option: str, value: str) -> None:
    if option == "-h":
        found.host = value
    elif option == "-u":
        found.user = value
    elif option == "-f":
        found.file = Path(value)
    elif option == "-format":
        if value not in FORMATS:
            raise BadUsage(f"-format {value}: one of {', '.join(FORMATS)} is wanted")
        found.style = value
    elif option == "-p":
        if not value.isdigit() or not 0 < int(value) < 65_536:
            raise BadUsage(f"-p {value}: a port from 1 to 65535 is wanted")
        found.port = int(value)
    else:
        try:
            found.page_rows = max(0, int(value))
        except ValueError:
            raise BadUsage(f"{PROMPT}error format of max print row count, it should be an integer number") from None


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _local_zone() -> str:
    """The machine's zone as an offset: every server knows those."""
    offset = datetime.now().astimezone().strftime("%z")
    return canonical_zone(offset[:5]) if offset else "Z"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 where the command line is wrong, nobody could log in, or a statement failed."""
    try:
        code = _main(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is anything said at the end
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _main(words: Sequence[str]) -> int:
    try:
        arguments = parse_arguments(words)
        lines = None if arguments.file is None else arguments.file.read_text().splitlines()
    except BadUsage as error:
        print(error, HINT, USAGE, sep="\n")
        return BAD_ARGUMENTS
    except OSError as error:
        print(f"{PROMPT}{error}")
        return BAD_ARGUMENTS
    if arguments.help:
        print(USAGE)
        return DONE
    if arguments.text is not None:
        lines = [*(lines or ()), *arguments.text.splitlines()]
    return _run(arguments, lines)


def _run(arguments: Arguments, lines: Sequence[str] | None) -> int:
    interactive = lines is None and sys.stdin.isatty()
    password = arguments.password
    if password is None:
        password = getpass("please input your password:")

    def connect() -> Connection:
        made = Connection(arguments.host, arguments.port, compact=arguments.compact)
        try:
            made.open(arguments.user, password, _local_zone())
        except BaseException:
            made.abandon()
            raise
        return made

    shell = Shell(
        connect,
        sys.stdout,
        page_rows=arguments.page_rows,
        time_kind="long" if arguments.numbers else "default",
        style=arguments.style,
        ask=input if interactive else None,
    )
    try:
        try:
            _ = shell.connection
        except (Refused, Disconnected, TApplicationException) as error:
            reason = str(error) if isinstance(error, Refused) else NOT_THERE
            if arguments.text is not None:
                print(f"{PROMPT}can't execute sql because{reason}")
            print(f"{PROMPT}{reason} Host is {arguments.host}, port is {arguments.port}.")
            return FAILED
        if not interactive:
            return _all(shell, sys.stdin if lines is None else lines)
        from iotdb_cluster.tools.cli_prompt import converse  # its libraries take a while to load

        shell.say(*TITLE, f"IoTDB cluster shell, version {shell.version}", "", f"{PROMPT}login successfully")
        converse(shell)
        return DONE
    finally:
        shell.close()


def _all(shell: Shell, lines: Iterable[str]) -> int:
    """Every statement, also behind one that failed."""
    failed = False
    try:
        for statement in statements(lines):
            failed |= not shell.run(statement)
    except Quit:
        return FAILED if failed else DONE
    return FAILED if failed else DONE


if __name__ == "__main__":
    sys.exit(main())
