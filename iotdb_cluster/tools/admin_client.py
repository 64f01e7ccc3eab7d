"""Asking a node over its nodetool port: one line of JSON there, one back."""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["AdminUnreachable", "ask"]

ANSWER_BYTES_MAX = 64 * 1024 * 1024


class AdminUnreachable(Exception):
    """Nobody answers on that port; the message says why."""


def ask(host: str, port: int, request: dict[str, Any], timeout_s: float = 10) -> dict[str, Any]:
    """The node's answer. Raises AdminUnreachable."""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            received = bytearray()
            while not received.endswith(b"\n") and len(received) < ANSWER_BYTES_MAX:
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                received += piece
        answer = json.loads(received)
    except (OSError, ValueError) as error:
        raise AdminUnreachable(f"{host}:{port}: {error}") from None
    return dict(answer)
