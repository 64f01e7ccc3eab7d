"""Users, roles and what they may do: state and operations on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from iotdb_cluster.auth.privileges import ALTERNATIVES, PATH_PRIVILEGES, Privilege
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.schema.paths import ROOT, PathPattern, split_path

__all__ = ["NAME_CHARS_MIN", "AuthState"]

ADMINISTRATOR = "root"  # where nobody chose another name
NAME_CHARS_MIN = 4

_Grants = dict[str, set[Privilege]]


def _refused(text: str) -> CallerError:
    return CallerError(Status.QUERY_PROCESS_ERROR, text)


@dataclass(slots=True)
class _User:
    password: str
    grants: _Grants = field(default_factory=dict)
    roles: set[str] = field(default_factory=set)


_covering = lru_cache(maxsize=4_096)(PathPattern.parse)  # grants are asked at every call


def _place(privilege: Privilege, path: str) -> str:
    return path if privilege in PATH_PRIVILEGES or privilege is Privilege.ALL else ROOT


def _has(grants: _Grants, privilege: Privilege, path: str) -> bool:
    return privilege in grants.get(_place(privilege, path), ())


def _texts(grants: _Grants, path: str | None) -> list[str]:
    asked = None if path is None else split_path(path)
    lines = []
    for place, privileges in sorted(grants.items()):
        if asked is None or _covering(place).matches(asked):
            lines.append(f"{place} : {' '.join(privilege.name for privilege in sorted(privileges))}")
    return lines


def _dump_grants(grants: _Grants) -> list[Any]:
    return [[path, sorted(map(int, privileges))] for path, privileges in sorted(grants.items())]


def _load_grants(dumped: Iterable[Any]) -> _Grants:
    return {path: set(map(Privilege, numbers)) for path, numbers in dumped}


class AuthState:
    """All users and roles. Operations raise CallerError (411, the original's texts) and then have changed nothing.

    A grant on a path covers the path and everything below. ALL on a path covers the privileges that belong to paths
    there; on "root" it covers everything.
    """

    def __init__(self, administrator: str = ADMINISTRATOR) -> None:
        self.administrator = administrator  # may do everything; cannot be dropped
        self._users: dict[str, _User] = {administrator: _User("")}
        self._roles: dict[str, _Grants] = {}

    # --- users --------------------------------------------------------------------------------------------------------

    def password_of(self, user: str) -> str | None:
        """The hashed password; None for an unknown user. "" means that nobody can log in."""
        found = self._users.get(user)
        return None if found is None else found.password

    def create_user(self, name: str, hashed: str) -> None:
        if len(name) < NAME_CHARS_MIN:
            raise _refused(f"Username's size must be greater than or equal to {NAME_CHARS_MIN}")
        if name in self._users:
            raise _refused(f"User {name} already exists")
        self._users[name] = _User(hashed)

    def drop_user(self, name: str) -> None:
        if name == self.administrator:
            raise _refused("Default administrator cannot be deleted")
        if name not in self._users:
            raise _refused(f"User {name} does not exist")
        del self._users[name]

    def set_password(self, name: str, hashed: str) -> None:
        self._user(name).password = hashed

    def _user(self, name: str) -> _User:
        found = self._users.get(name)
        if found is None:
            raise _refused(f"No such user {name}")
        return found

    # --- roles --------------------------------------------------------------------------------------------------------

    def create_role(self, name: str) -> None:
        if len(name) < NAME_CHARS_MIN:
            raise _refused(f"Role name's size must be greater than or equal to {NAME_CHARS_MIN}")
        if name in self._roles:
            raise _refused(f"Role {name} already exists")
        self._roles[name] = {}

    def drop_role(self, name: str) -> None:
        if name not in self._roles:
            raise _refused(f"Role {name} does not exist")
        del self._roles[name]
        for user in self._users.values():
            user.roles.discard(name)

    def grant_role(self, role: str, user: str) -> None:
        if role not in self._roles:
            raise _refused(f"No such role : {role}")
        found = self._user(user)
        if role in found.roles:
            raise _refused(f"User {user} already has role {role}")
        found.roles.add(role)

    def revoke_role(self, role: str, user: str) -> None:
        if role not in self._roles:
            raise _refused(f"No such role : {role}")
        found = self._user(user)
        if role not in found.roles:
            raise _refused(f"User {user} does not have role {role}")
        found.roles.remove(role)

    # --- privileges ---------------------------------------------------------------------------------------------------

    def grant_user(self, user: str, privileges: Iterable[Privilege], path: str) -> None:
        """All of the privileges, or none."""
        if user == self.administrator:
            raise _refused("Invalid operation, administrator already has all privileges")
        _grant(self._user(user).grants, f"User {user}", sorted(set(privileges)), path)

    def revoke_user(self, user: str, privileges: Iterable[Privilege], path: str) -> None:
        """All of the privileges, or none."""
        if user == self.administrator:
            raise _refused("Invalid operation, administrator must have all privileges")
        _revoke(self._user(user).grants, f"User {user}", sorted(set(privileges)), path)

    def grant_role_privileges(self, role: str, privileges: Iterable[Privilege], path: str) -> None:
        """All of the privileges, or none."""
        _grant(self._role(role), f"Role {role}", sorted(set(privileges)), path)

    def revoke_role_privileges(self, role: str, privileges: Iterable[Privilege], path: str) -> None:
        """All of the privileges, or none."""
        _revoke(self._role(role), f"Role {role}", sorted(set(privileges)), path)

    def _role(self, name: str) -> _Grants:
        found = self._roles.get(name)
        if found is None:
            raise _refused(f"No such role {name}")
        return found

    def allowed(self, user: str, privilege: Privilege | None, path: str | None = None) -> bool:
        """Whether the user has the privilege, on that path where it belongs to paths; None: the administrator alone."""
        if user == self.administrator:
            return True
        found = self._users.get(user)
        if found is None or privilege is None:
            return False
        nodes = split_path(ROOT if path is None or privilege not in PATH_PRIVILEGES else path)
        serving = {privilege, Privilege.ALL, ALTERNATIVES.get(privilege, privilege)}
        return any(
            not serving.isdisjoint(granted) and _covering(place).matches(nodes)
            for grants in (found.grants, *(self._roles[role] for role in sorted(found.roles)))
            for place, granted in grants.items()
        )

    # --- lists --------------------------------------------------------------------------------------------------------

    def users(self) -> list[str]:
        return sorted(self._users)

    def roles(self) -> list[str]:
        return sorted(self._roles)

    def roles_of(self, user: str) -> list[str]:
        """LIST ALL ROLE OF USER."""
        return sorted(self._listed_user(user).roles)

    def users_of(self, role: str) -> list[str]:
        """LIST ALL USER OF ROLE."""
        self._listed_role(role)
        return [name for name, user in sorted(self._users.items()) if role in user.roles]

    def user_privileges(self, user: str, path: str | None = None) -> list[tuple[str, str]]:
        """(role or "", "path : PRIVILEGE ...") a row: own ones first. With a path only what covers it."""
        found = self._listed_user(user)
        rows = [("", text) for text in _texts(found.grants, path)]
        for role in sorted(found.roles):
            rows += [(role, text) for text in _texts(self._roles[role], path)]
        return rows

    def role_privileges(self, role: str, path: str | None = None) -> list[str]:
        """ "path : PRIVILEGE ..." a row. With a path only what covers it."""
        return _texts(self._listed_role(role), path)

    def _listed_user(self, name: str) -> _User:
        found = self._users.get(name)
        if found is None:
            raise _refused(f"No such user : {name}")
        return found

    def _listed_role(self, name: str) -> _Grants:
        found = self._roles.get(name)
        if found is None:
            raise _refused(f"No such role : {name}")
        return found

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """A value for JSON, equal for equal states."""
        return {
            "users": [
                [name, user.password, _dump_grants(user.grants), sorted(user.roles)]
                for name, user in sorted(self._users.items())
            ],
            "roles": [[name, _dump_grants(grants)] for name, grants in sorted(self._roles.items())],
            "administrator": self.administrator,
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> AuthState:
        state = cls(dumped.get("administrator", ADMINISTRATOR))
        state._users = {
            name: _User(password, _load_grants(grants), set(roles)) for name, password, grants, roles in dumped["users"]
        }
        state._roles = {name: _load_grants(grants) for name, grants in dumped["roles"]}
        return state


def _grant(grants: _Grants, who: str, privileges: list[Privilege], path: str) -> None:
    split_path(path)
    for privilege in privileges:
        if _has(grants, privilege, path):
            raise _refused(f"{who} already has {privilege.name} on {path}")
    for privilege in privileges:
        grants.setdefault(_place(privilege, path), set()).add(privilege)


def _revoke(grants: _Grants, who: str, privileges: list[Privilege], path: str) -> None:
    for privilege in privileges:
        if not _has(grants, privilege, path):
            raise _refused(f"{who} does not have {privilege.name} on {path}")
    for privilege in privileges:
        place = _place(privilege, path)
        grants[place].remove(privilege)
        if not grants[place]:
            del grants[place]
