"""LOAD CONFIGURATION: the property files are read again, and what may change while the node runs does.

With -GLOBAL the asked node's values go to every node of the cluster: they hold there until the next reload or restart,
since the files of another node are its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.configuration import BadConfiguration, Loaded
from iotdb_cluster.cluster.keys import KEYS, RELOADED
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.world import World

__all__ = ["Reloading", "value_of"]

logger = logging.getLogger(__name__)

_PLACES: dict[str, Callable[[Settings], Any]] = {
    "host": lambda settings: settings.address.host,
    "meta_port": lambda settings: settings.address.meta_port,
    "data_port": lambda settings: settings.address.data_port,
    "client_port": lambda settings: settings.address.client_port,
}


def value_of(settings: Settings, setting: str) -> Any:
    """The value behind a key's `setting`."""
    if setting in _PLACES:
        return _PLACES[setting](settings)
    if setting.startswith("infer_"):
        return getattr(settings.inference, setting.removeprefix("infer_"))
    return getattr(settings, setting)


def _names() -> dict[str, str]:
    """The key by which each setting is known."""
    found: dict[str, str] = {}
    for keys in KEYS.values():
        for key in keys:
            if key.fate == "honoured":
                found[key.setting] = key.name
    return found


_KEY_NAMES = _names()


class Reloading:
    """One node's settings while it runs."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        read: Callable[[], Loaded],
        meta: MetaAccess,
        calls: Calls,
        changed: Callable[[], None],
    ) -> None:
        """`read` reads the files anew, on a worker; `changed` is called after every change."""
        self._world = world
        self._settings = settings
        self._read = read
        self._meta = meta
        self._calls = calls
        self._changed = changed

    def register(self, calls: Calls) -> None:
        calls.handlers["configuration"] = self._taken

    async def load(self, everywhere: bool, deadline: Deadline) -> str:
        """Reload this node's files; what to tell the user. 411 where a file says what cannot be: nothing changes."""
        try:
            loaded = await self._world.workers.run(self._read)
        except (BadConfiguration, OSError) as error:
            raise CallerError(Status.QUERY_PROCESS_ERROR, f"The configuration is not loaded: {error}") from None
        for notice in loaded.notices:
            logger.warning(notice)
        new, values = loaded.settings, {setting: value_of(loaded.settings, setting) for setting in sorted(RELOADED)}
        stays = [name for name, setting in _differing(self._settings, new) if setting not in RELOADED]
        parts = [f"changed: {', '.join(self._take(values)) or 'nothing'}"]
        if stays:
            parts.append(f"need a restart: {', '.join(stays)}")
        if everywhere:
            parts += await self._tell_others(values, deadline)
        text = "; ".join(parts)
        logger.info("configuration loaded; %s", text)
        return text

    def _take(self, values: Mapping[str, Any]) -> list[str]:
        """Set what differs; the names of its keys."""
        settings, changed = self._settings, []
        for setting, value in values.items():
            if value_of(settings, setting) == value:
                continue
            if setting.startswith("infer_"):
                settings.inference = replace(settings.inference, **{setting.removeprefix("infer_"): value})
            else:
                setattr(settings, setting, value)
            changed.append(_KEY_NAMES[setting])
        if changed:
            self._changed()
        return changed

    async def _tell_others(self, values: Mapping[str, Any], deadline: Deadline) -> list[str]:
        await self._meta.barrier(deadline)
        others = [node for node in self._meta.state.nodes if node.id != self._calls.node]
        body = pack({name: value.name if isinstance(value, DataType) else value for name, value in values.items()})
        failures = await self._calls.call_each([node.id for node in others], "configuration", body, deadline)
        lost = [
            f"{node.address.host}:{node.address.meta_port} ({failure.message})"
            for node, failure in zip(others, failures, strict=True)
            if failure is not None
        ]
        if lost:
            raise CallerError(
                Status.NO_CONNECTION, f"loaded here, but these nodes do not have it: {', '.join(lost)}: repeat it"
            )
        return [f"sent to {len(others)} other nodes"]

    async def _taken(self, body: memoryview, deadline: Deadline) -> bytes:
        """Another node's values; those that this node does not reload are left alone."""
        del deadline
        head, _ = unpack(body)
        values = {
            name: DataType[value] if name.startswith("infer_") else value
            for name, value in head.items()
            if name in RELOADED
        }
        changed = self._take(values)
        logger.info("configuration of another node taken; changed: %s", ", ".join(changed) or "nothing")
        return pack(changed)


def _differing(old: Settings, new: Settings) -> list[tuple[str, str]]:
    """(key, setting) of every value that differs."""
    return [
        (name, setting)
        for setting, name in sorted(_KEY_NAMES.items(), key=lambda item: item[1])
        if value_of(old, setting) != value_of(new, setting)
    ]
