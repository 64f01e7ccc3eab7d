"""How a query is refused: the codes and prefixes that clients know."""

from __future__ import annotations

from iotdb_cluster.errors import CallerError, Status

__all__ = ["refuse", "refuse_statement"]


def refuse(text: str) -> CallerError:
    """A planning or execution error (411)."""
    return CallerError(Status.QUERY_PROCESS_ERROR, f"Error occurred in query process: {text}")


def refuse_statement(text: str) -> CallerError:
    """A semantic error in the statement (303)."""
    return CallerError(Status.METADATA_ERROR, f"Check metadata error: {text}")
