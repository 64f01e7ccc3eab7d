"""A hash over what a group holds, equal for equal replicas, however their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from iotdb_cluster.storage import Store, UnitId, UnitReader

__all__ = ["digester"]


def digester(
    store: Store, state: bytes, units: Sequence[tuple[int, int]]
) -> tuple[Callable[[], str], Callable[[], None]]:
    """(what a worker runs for the digest of a state and these units as they are now; what unpins them, on the loop)."""
    found = hashlib.sha256(state)
    readers: list[UnitReader] = []

    def release() -> None:
        for reader in readers:
            reader.close()

    def work() -> str:
        for (storage_group, partition), reader in zip(units, readers, strict=True):
            found.update(f"{storage_group} {partition} {reader.digest()}\n".encode())
        return found.hexdigest()

    try:
        readers.extend(store.reader(UnitId(*key)) for key in units)
    except BaseException:
        release()
        raise
    return work, release
