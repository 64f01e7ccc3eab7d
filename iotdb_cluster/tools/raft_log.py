"""`iotdb raft-log FILE`, `nodetool.sh log -path FILE`: the records of a log directory or of one segment file.

It only reads. Exit code 4 where something is damaged, 1 where nothing is there.
"""

from __future__ import annotations

import json
import sys

import click

from iotdb_cluster.cluster.log import fact_line, log_facts
from iotdb_cluster.cluster.log_entries import entry_text
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DATA_UNUSABLE, DONE
from iotdb_cluster.world import RealFileSystem

__all__ = ["main", "show_log"]


def show_log(path: str, detail: bool, as_json: bool) -> int:
    """Print it; the exit code."""
    code = DONE
    try:
        for fact in log_facts(RealFileSystem(), path, entry_text if detail else None):
            click.echo(json.dumps(fact, sort_keys=True) if as_json else fact_line(fact))
            if fact["what"] in ("corrupt", "damaged"):
                code = DATA_UNUSABLE
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        return BAD_ARGUMENTS
    return code


@click.command()
@click.argument("path", metavar="FILE")
@click.option("-d", "--detail", is_flag=True, help="also each entry")
@click.option("--json", "as_json", is_flag=True, help="a JSON object a line")
def main(path: str, detail: bool, as_json: bool) -> None:
    """Print the records of a durable log: FILE is a segment file or a log directory."""
    sys.exit(show_log(path, detail, as_json))


if __name__ == "__main__":
    main()
