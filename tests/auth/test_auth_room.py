"""Users, roles and privileges: the recorded session of the original, and rules against a naive model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iotdb_cluster.auth import (
    OPERATION_PRIVILEGES,
    AuthState,
    Privilege,
    check_password,
    hash_password,
    no_permission,
    privilege_of,
    verify_password,
)
from iotdb_cluster.errors import CallerError, Status

READ, INSERT = Privilege.READ_TIMESERIES, Privilege.INSERT_TIMESERIES


def refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(CallerError) as caught:
        call()
    assert (caught.value.code, caught.value.message) == (Status.QUERY_PROCESS_ERROR, message)


def test_the_recorded_session() -> None:
    auth = AuthState()
    assert (auth.users(), auth.roles()) == (["root"], [])
    auth.create_user("ln_user", "hash")
    refused("User ln_user already exists", lambda: auth.create_user("ln_user", "again"))
    refused("Username's size must be greater than or equal to 4", lambda: auth.create_user("ab", "x"))
    refused("User root already exists", lambda: auth.create_user("root", "x"))
    assert auth.users() == ["ln_user", "root"]
    auth.create_role("reader")
    refused("Role reader already exists", lambda: auth.create_role("reader"))
    refused("Role name's size must be greater than or equal to 4", lambda: auth.create_role("abc"))
    auth.grant_user("ln_user", [READ], "root.au")
    refused(
        "User ln_user already has READ_TIMESERIES on root.au", lambda: auth.grant_user("ln_user", [READ], "root.au")
    )
    refused("No such user nobody", lambda: auth.grant_user("nobody", [READ], "root.au"))
    refused("No such privilege NOT_A_PRIVILEGE", lambda: privilege_of("NOT_A_PRIVILEGE"))
    auth.grant_role_privileges("reader", [INSERT], "root.au")
    auth.grant_role("reader", "ln_user")
    assert auth.user_privileges("ln_user", "root.au") == [
        ("", "root.au : READ_TIMESERIES"),
        ("reader", "root.au : INSERT_TIMESERIES"),
    ]
    assert auth.user_privileges("ln_user") == auth.user_privileges("ln_user", "root.au.d1")
    assert auth.user_privileges("ln_user", "root") == []
    assert auth.role_privileges("reader", "root.au") == ["root.au : INSERT_TIMESERIES"]
    assert auth.roles_of("ln_user") == ["reader"]
    assert auth.users_of("reader") == ["ln_user"]
    assert auth.allowed("ln_user", READ, "root.au.d1.s1")
    assert auth.allowed("ln_user", INSERT, "root.au.d1")
    assert not auth.allowed("ln_user", READ, "root.other.d1.s1")
    assert not auth.allowed("ln_user", READ, "root.aux.d1")
    for operation in ("SET_STORAGE_GROUP", "CREATE_TIMESERIES", "DELETE", "DELETE_TIMESERIES", "CREATE_USER", "FLUSH"):
        assert not auth.allowed("ln_user", OPERATION_PRIVILEGES[operation], "root.au.d1")
        assert auth.allowed("root", OPERATION_PRIVILEGES[operation], "root.au.d1")
    auth.revoke_role("reader", "ln_user")
    assert not auth.allowed("ln_user", INSERT, "root.au.d1")
    auth.revoke_user("ln_user", [READ], "root.au")
    refused(
        "User ln_user does not have READ_TIMESERIES on root.au", lambda: auth.revoke_user("ln_user", [READ], "root.au")
    )
    assert not auth.allowed("ln_user", READ, "root.au.d1")
    auth.drop_role("reader")
    refused("Role reader does not exist", lambda: auth.drop_role("reader"))
    auth.drop_user("ln_user")
    refused("User ln_user does not exist", lambda: auth.drop_user("ln_user"))
    refused("Default administrator cannot be deleted", lambda: auth.drop_user("root"))
    assert not auth.allowed("ln_user", READ, "root.au.d1")


def test_other_refusals() -> None:
    auth = AuthState()
    auth.create_user("user", "")
    auth.create_role("role")
    refused(
        "Invalid operation, administrator already has all privileges", lambda: auth.grant_user("root", [READ], "root")
    )
    refused(
        "Invalid operation, administrator must have all privileges", lambda: auth.revoke_user("root", [READ], "root")
    )
    refused("No such role : nothing", lambda: auth.grant_role("nothing", "user"))
    refused("No such user nobody", lambda: auth.grant_role("role", "nobody"))
    refused("No such role : nothing", lambda: auth.revoke_role("nothing", "user"))
    refused("User user does not have role role", lambda: auth.revoke_role("role", "user"))
    auth.grant_role("role", "user")
    refused("User user already has role role", lambda: auth.grant_role("role", "user"))
    refused("No such role nothing", lambda: auth.grant_role_privileges("nothing", [READ], "root"))
    refused(
        "Role role does not have READ_TIMESERIES on root.a",
        lambda: auth.revoke_role_privileges("role", [READ], "root.a"),
    )
    for call in (auth.roles_of, auth.user_privileges):
        refused("No such user : nobody", lambda call=call: call("nobody"))
    for call in (auth.users_of, auth.role_privileges):
        refused("No such role : nothing", lambda call=call: call("nothing"))
    refused("No such user nobody", lambda: auth.set_password("nobody", "x"))
    assert (no_permission("QUERY").code, no_permission("QUERY").message) == (
        Status.NO_PERMISSION,
        "No permissions for this operation QUERY",
    )


def test_a_grant_of_several_is_whole_or_nothing() -> None:
    auth = AuthState()
    auth.create_user("user", "")
    auth.grant_user("user", [INSERT], "root.a")
    before = auth.dump()
    refused(
        "User user already has INSERT_TIMESERIES on root.a", lambda: auth.grant_user("user", [READ, INSERT], "root.a")
    )
    assert auth.dump() == before
    auth.grant_user("user", [Privilege.CREATE_USER, READ], "root.a")
    assert [text for _, text in auth.user_privileges("user")] == [
        "root : CREATE_USER",
        "root.a : INSERT_TIMESERIES READ_TIMESERIES",
    ]


def test_all_on_a_path_is_not_all_on_root() -> None:
    auth = AuthState()
    auth.create_user("user", "")
    auth.grant_user("user", [Privilege.ALL], "root.a")
    assert auth.allowed("user", READ, "root.a.b")
    assert not auth.allowed("user", READ, "root.b")
    assert not auth.allowed("user", Privilege.CREATE_USER, "root.a")
    auth.grant_user("user", [Privilege.ALL], "root")
    assert auth.allowed("user", Privilege.CREATE_USER)
    assert auth.allowed("user", READ, "root.b")
    assert not auth.allowed("user", None, "root.b")


def test_passwords() -> None:
    hashed = hash_password("pässword", b"0123456789abcdef")
    assert hashed == hash_password("pässword", b"0123456789abcdef") != hash_password("pässword", b"0123456789abcdeg")
    assert verify_password("pässword", hashed)
    assert not verify_password("password", hashed)
    assert not verify_password("x" * 2_000, hashed)
    assert not verify_password("", "")
    assert not verify_password("x", "md5$1$1$00$00")
    assert "pässword" not in hashed
    refused("Password's size must be greater than or equal to 4", lambda: check_password("abc"))
    with pytest.raises(CallerError):
        check_password("x" * 2_000)
    check_password("root")


USERS = st.sampled_from(["anna", "bert", "root"])
ROLES = st.sampled_from(["role1", "role2"])
PATHS = st.sampled_from(["root", "root.a", "root.a.b", "root.ab", "root.a.b.c"])
PRIVILEGES = st.sampled_from([READ, INSERT, Privilege.CREATE_USER, Privilege.LIST_ROLE])


class AuthMachine(RuleBasedStateMachine):
    """A set of facts beside the state: (kind, holder, ...) tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = AuthState()
        self.facts: set[tuple[object, ...]] = {("user", "root")}

    def attempt(
        self, legal: bool, call: Callable[[], None], *changes: tuple[object, ...], remove: bool = False
    ) -> None:
        if not legal:
            before = self.auth.dump()
            with pytest.raises(CallerError):
                call()
            assert self.auth.dump() == before
            return
        call()
        if remove:
            self.facts -= set(changes)
        else:
            self.facts |= set(changes)

    @rule(user=USERS)
    def create_user(self, user: str) -> None:
        self.attempt(("user", user) not in self.facts, lambda: self.auth.create_user(user, "h"), ("user", user))

    @rule(user=USERS)
    def drop_user(self, user: str) -> None:
        legal = user != "root" and ("user", user) in self.facts
        gone = [fact for fact in self.facts if fact[0] in ("user", "has", "in") and fact[1] == user]
        self.attempt(legal, lambda: self.auth.drop_user(user), *gone, remove=True)

    @rule(role=ROLES)
    def create_role(self, role: str) -> None:
        self.attempt(("role", role) not in self.facts, lambda: self.auth.create_role(role), ("role", role))

    @rule(role=ROLES)
    def drop_role(self, role: str) -> None:
        gone = [fact for fact in self.facts if role in fact]
        self.attempt(("role", role) in self.facts, lambda: self.auth.drop_role(role), *gone, remove=True)

    @rule(user=USERS, role=ROLES, give=st.booleans())
    def membership(self, user: str, role: str, give: bool) -> None:
        fact = ("in", user, role)
        legal = {("user", user), ("role", role)} <= self.facts and (fact in self.facts) is not give
        call = self.auth.grant_role if give else self.auth.revoke_role
        self.attempt(legal, lambda: call(role, user), fact, remove=not give)

    @rule(user=USERS, privilege=PRIVILEGES, path=PATHS, give=st.booleans())
    def user_privilege(self, user: str, privilege: Privilege, path: str, give: bool) -> None:
        fact = ("has", user, privilege, path if privilege < 6 else "root")
        legal = user != "root" and ("user", user) in self.facts and (fact in self.facts) is not give
        call = self.auth.grant_user if give else self.auth.revoke_user
        self.attempt(legal, lambda: call(user, [privilege], path), fact, remove=not give)

    @rule(role=ROLES, privilege=PRIVILEGES, path=PATHS, give=st.booleans())
    def role_privilege(self, role: str, privilege: Privilege, path: str, give: bool) -> None:
        fact = ("can", role, privilege, path if privilege < 6 else "root")
        legal = ("role", role) in self.facts and (fact in self.facts) is not give
        call = self.auth.grant_role_privileges if give else self.auth.revoke_role_privileges
        self.attempt(legal, lambda: call(role, [privilege], path), fact, remove=not give)

    @rule(user=USERS, privilege=PRIVILEGES, path=PATHS)
    def ask(self, user: str, privilege: Privilege, path: str) -> None:
        holders = [user, *(fact[2] for fact in self.facts if fact[:2] == ("in", user))]
        expected = user == "root" or any(
            fact[0] in ("has", "can")
            and fact[1] in holders
            and fact[2] is privilege
            and (privilege >= 6 or f"{path}.".startswith(f"{fact[3]}."))
            for fact in self.facts
        )
        assert self.auth.allowed(user, privilege, path) is expected

    @rule()
    def reload(self) -> None:
        dumped = self.auth.dump()
        self.auth = AuthState.load(dumped)
        assert self.auth.dump() == dumped

    @invariant()
    def lists(self) -> None:
        assert self.auth.users() == sorted(str(fact[1]) for fact in self.facts if fact[0] == "user")
        assert self.auth.roles() == sorted(str(fact[1]) for fact in self.facts if fact[0] == "role")


TestAuth = AuthMachine.TestCase
TestAuth.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
