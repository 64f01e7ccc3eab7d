"""Everything between bytes on a socket and typed calls, for stock clients and between nodes.

* `ClientService` serves stock clients of the 0.12 line; the node implements `ClientHandler`, which it calls.
* `PeerServer` and `PeerPool` carry calls and one-way batches between nodes.
* `canonical_zone` and `zone_info` know time zones by the names that Java clients use.

All bytes from outside are checked here (docs/design/rpc.md); what comes out is typed and within its bounds.
"""

from iotdb_cluster.rpc.handler import (
    ClientHandler,
    Done,
    InsertKind,
    MetadataKind,
    Redirect,
    ResultHeader,
    ResultSet,
    SeriesRequest,
    ServerProperties,
    Session,
    StatementKind,
    TemplateRequest,
    TextRow,
)
from iotdb_cluster.rpc.peer_client import PeerClient, PeerPool
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.rpc.peer_server import PeerAnswer, PeerHandler, PeerServer
from iotdb_cluster.rpc.service import ClientService
from iotdb_cluster.rpc.zones import canonical_zone, zone_info

__all__ = [
    "ClientHandler",
    "ClientService",
    "Done",
    "InsertKind",
    "MetadataKind",
    "PeerAnswer",
    "PeerClient",
    "PeerHandler",
    "PeerIdentity",
    "PeerPool",
    "PeerServer",
    "Redirect",
    "ResultHeader",
    "ResultSet",
    "SeriesRequest",
    "ServerProperties",
    "Session",
    "StatementKind",
    "TemplateRequest",
    "TextRow",
    "canonical_zone",
    "zone_info",
]
