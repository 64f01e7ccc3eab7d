"""The IDL files, loaded: `client()` and `node()` are modules with a class a struct.

They lie in `thrift/` at the top of the source tree; a wheel puts them under `share/iotdb-cluster/thrift` of the
environment.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import thriftpy2

__all__ = ["client", "directory", "node"]


def directory() -> Path:
    """Where the IDL files are; FileNotFoundError names every place that was looked at."""
    above = Path(__file__).resolve().parents[2]
    places = [above / "thrift", above / "share" / "iotdb-cluster" / "thrift"]
    places.append(Path(sys.prefix) / "share" / "iotdb-cluster" / "thrift")
    for place in places:
        if (place / "client.thrift").is_file():
            return place
    raise FileNotFoundError(f"no client.thrift in any of {', '.join(map(str, places))}")


@cache
def client() -> ModuleType:
    """The client service (0.1 s at the first call)."""
    return thriftpy2.load(str(directory() / "client.thrift"), "iotdb_client_thrift")


@cache
def node() -> ModuleType:
    """The service between nodes."""
    return thriftpy2.load(str(directory() / "node.thrift"), "iotdb_node_thrift")
