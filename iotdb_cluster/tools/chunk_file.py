"""`iotdb chunk-file FILE`: what stands in a chunk file: footer, row groups, chunks, pages, statistics.

It only reads. Exit code 4 where something is damaged, 1 where the file cannot be read.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.storage import chunk_facts
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DATA_UNUSABLE
from iotdb_cluster.world import RealFileSystem

__all__ = ["main"]

INDENT = {"row group": 1, "chunk": 2, "page": 3, "block": 3}


def _line(fact: dict[str, Any]) -> str:
    what = str(fact["what"])
    rest = "  ".join(f"{name} {value}" for name, value in fact.items() if name != "what")
    return f"{'  ' * INDENT.get(what, 0)}{what}: {rest}"


@click.command()
@click.argument("path", metavar="FILE")
@click.option("--check", is_flag=True, help="decode every page, compare times and statistics with what it holds")
@click.option("--blocks", is_flag=True, help="also the statistics of each block of rows")
@click.option("--json", "as_json", is_flag=True, help="a JSON object a line")
def main(path: str, check: bool, blocks: bool, as_json: bool) -> None:
    """Print what stands in the chunk file FILE."""
    try:
        for fact in chunk_facts(RealFileSystem(), path, check=check, blocks=blocks):
            click.echo(json.dumps(fact, sort_keys=True) if as_json else _line(fact))
    except CorruptData as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(DATA_UNUSABLE)
    except SystemFault as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(BAD_ARGUMENTS)


if __name__ == "__main__":
    main()
