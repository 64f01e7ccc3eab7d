"""Which devices have series with a tag: devices, not series, so that it stays small where these have many."""

from __future__ import annotations

from iotdb_cluster.schema.facts import Pairs

__all__ = ["TagIndex"]


class TagIndex:
    """Tag key -> device -> how many of its series have it."""

    def __init__(self) -> None:
        self._devices: dict[str, dict[str, int]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._devices

    def devices(self, key: str) -> list[str]:
        """Paths, in no order that means anything."""
        return list(self._devices.get(key, ()))

    def add(self, device: str, tags: Pairs) -> None:
        for key, _ in tags:
            devices = self._devices.setdefault(key, {})
            devices[device] = devices.get(device, 0) + 1

    def remove(self, device: str, tags: Pairs) -> None:
        for key, _ in tags:
            devices = self._devices[key]
            devices[device] -= 1
            if not devices[device]:
                del devices[device]
                if not devices:
                    del self._devices[key]
