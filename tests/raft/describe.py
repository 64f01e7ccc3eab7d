"""Text of what a replica hands out, in the words of etcd's raft."""

from __future__ import annotations

from iotdb_cluster.raft import (
    LOCAL_APPEND,
    LOCAL_APPLY,
    ConfChangeType,
    Entries,
    EntryKind,
    MemberStatus,
    Message,
    MessageType,
    Ready,
    Role,
    Snapshot,
    decode_conf_change,
)

MESSAGE_NAMES = {kind: "Msg" + "".join(part.capitalize() for part in kind.name.split("_")) for kind in MessageType}
MESSAGE_TYPES = {name: kind for kind, name in MESSAGE_NAMES.items()}
ROLE_NAMES = {
    Role.FOLLOWER: "StateFollower",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
    Role.PRE_CANDIDATE: "StatePreCandidate",
}
KIND_NAMES = ("EntryNormal", "EntryConfChange", "EntryConfChangeV2")
PROGRESS_NAMES = ("StateProbe", "StateReplicate", "StateSnapshot")
CHANGE_LETTERS = {
    "v": ConfChangeType.ADD_NODE,
    "l": ConfChangeType.ADD_LEARNER,
    "r": ConfChangeType.REMOVE_NODE,
    "u": ConfChangeType.UPDATE_NODE,
}
LETTERS = {kind: letter for letter, kind in CHANGE_LETTERS.items()}


def quoted(payload: bytes) -> str:
    """As Go's %q does for ASCII."""
    text = payload.decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\t", "\\t") + '"'


def describe_entries(entries: Entries) -> list[str]:
    lines = []
    for at, (term, kind, payload) in enumerate(zip(entries.terms, entries.kinds, entries.data, strict=True)):
        if kind == EntryKind.NORMAL:
            text = quoted(payload)
        else:
            text = " ".join(f"{LETTERS[change.type]}{change.node}" for change in decode_conf_change(payload).changes)
        lines.append(f"{term}/{entries.first + at if term else 0} {KIND_NAMES[kind]} {text}".rstrip())
    return lines


def describe_ids(ids: tuple[int, ...]) -> str:
    return "[" + " ".join(map(str, ids)) + "]"


def describe_snapshot(snapshot: Snapshot) -> str:
    state = snapshot.conf_state
    return (
        f"Index:{snapshot.index} Term:{snapshot.term} ConfState:Voters:{describe_ids(state.voters)}"
        f" VotersOutgoing:{describe_ids(state.voters_outgoing)} Learners:{describe_ids(state.learners)}"
        f" LearnersNext:{describe_ids(state.learners_next)} AutoLeave:{str(state.auto_leave).lower()}"
    )


def describe_target(target: int) -> str:
    return {0: "None", LOCAL_APPEND: "AppendThread", LOCAL_APPLY: "ApplyThread"}.get(target, f"{target:x}")


def describe_message(message: Message, indent: str = "") -> str:
    text = (
        f"{indent}{describe_target(message.source)}->{describe_target(message.to)} {MESSAGE_NAMES[message.type]}"
        f" Term:{message.term} Log:{message.log_term}/{message.index}"
    )
    if message.reject:
        text += f" Rejected (Hint: {message.reject_hint})"
    if message.commit:
        text += f" Commit:{message.commit}"
    if message.vote:
        text += f" Vote:{message.vote}"
    entries = describe_entries(message.entries)
    if len(entries) == 1:
        text += f" Entries:[{entries[0]}]"
    elif entries:
        text += " Entries:[" + "".join(f"\n{indent}  {line}" for line in entries) + f"\n{indent}]"
    if message.snapshot is not None and message.snapshot.index:
        text += f"\n{indent}  Snapshot: {describe_snapshot(message.snapshot)}"
    if message.responses:
        text += " Responses:["
        text += "".join("\n" + describe_message(response, indent + "  ") for response in message.responses)
        text += f"\n{indent}]"
    return text


def describe_ready(ready: Ready) -> str:
    lines = []
    if ready.soft_state is not None:
        lines.append(f"Lead:{ready.soft_state.leader} State:{ROLE_NAMES[ready.soft_state.role]}")
    if ready.hard_state is not None:
        term, vote, commit = ready.hard_state
        lines.append(f"HardState Term:{term}" + (f" Vote:{vote}" if vote else "") + f" Commit:{commit}")
    if ready.entries:
        lines.append("Entries:")
        lines.extend(describe_entries(ready.entries))
    if ready.snapshot is not None:
        lines.append(f"Snapshot {describe_snapshot(ready.snapshot)}")
    if ready.committed:
        lines.append("CommittedEntries:")
        lines.extend(describe_entries(ready.committed))
    if ready.messages:
        lines.append("Messages:")
        lines.extend(describe_message(message) for message in ready.messages)
    if not lines:
        return "<empty Ready>"
    return f"Ready MustSync={str(ready.must_sync).lower()}:\n" + "\n".join(lines) + "\n"


def describe_member(status: MemberStatus) -> str:
    text = f"{PROGRESS_NAMES[status.state]} match={status.match} next={status.next}"
    text += " learner" if status.learner else ""
    text += " paused" if status.paused else ""
    text += f" pendingSnap={status.pending_snapshot}" if status.pending_snapshot else ""
    text += "" if status.active else " inactive"
    if status.inflight:
        text += f" inflight={status.inflight}" + ("[full]" if status.inflight_full else "")
    return text
