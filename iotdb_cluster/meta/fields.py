"""The fields of a command, read with their types checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iotdb_cluster.auth import Privilege
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta.records import Address

__all__ = ["Fields", "address_of", "move_of"]


class Fields:
    """The fields of a command, checked: CallerError where one is missing or of another type."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head

    def _of(self, name: str, kind: type | tuple[type, ...]) -> Any:
        found = self._head.get(name)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"a meta command's field {name} is {found!r}")
        return found

    def text(self, name: str) -> str:
        return str(self._of(name, str))

    def number(self, name: str) -> int:
        return int(self._of(name, int))

    def items(self, name: str) -> list[Any]:
        return list(self._of(name, list))

    def texts(self, name: str) -> list[str]:
        return [str(item) for item in self.items(name)]

    def numbers(self, name: str) -> list[int]:
        found = self.items(name)
        if not all(type(item) is int for item in found):
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"a meta command's field {name} is {found!r}")
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._of(name, dict))

    def optional_number(self, name: str) -> int | None:
        return None if self._head.get(name) is None else self.number(name)

    def optional_text(self, name: str, default: str) -> str:
        return default if self._head.get(name) is None else self.text(name)

    def address(self) -> Address:
        return address_of(self.items("address"))

    def privileges(self) -> list[Privilege]:
        try:
            return [Privilege(number) for number in self.items("privileges")]
        except ValueError as error:
            raise CallerError(Status.QUERY_PROCESS_ERROR, f"No such privilege {error}") from None


def address_of(items: list[Any]) -> Address:
    """An address as commands carry it; CallerError where it is none."""
    if len(items) != 4 or not isinstance(items[0], str) or not all(type(port) is int for port in items[1:]):
        raise CallerError(Status.INTERNAL_SERVER_ERROR, f"{items!r} is no address of a node")
    return Address(*items)


def move_of(item: Any) -> tuple[int, int, list[int]]:
    """(giver, receiver, slots) as commands carry them; CallerError where it is none."""
    if isinstance(item, list) and len(item) == 3 and isinstance(item[2], list):
        giver, receiver, slots = item
        if all(type(number) is int for number in (giver, receiver, *slots)):
            return giver, receiver, slots
    raise CallerError(Status.INTERNAL_SERVER_ERROR, f"{item!r} is no move of slots")
