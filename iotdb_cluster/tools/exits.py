"""Exit codes of the commands, as the documents promise them."""

from __future__ import annotations

__all__ = ["BAD_ARGUMENTS", "DATA_UNUSABLE", "DONE", "REFUSED", "UNREACHABLE"]

DONE = 0  # stopped on request; change done
BAD_ARGUMENTS = 1  # arguments or configuration: key, value, file and line are named
UNREACHABLE = 2  # nobody answered in time
REFUSED = 3  # refused by the cluster, with its reason
DATA_UNUSABLE = 4  # data directory locked, damaged, or made by other settings
