"""The window of applied requests against plain sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import InvariantViolation, OutcomeUnknown
from iotdb_cluster.limits import REQUESTS_AHEAD_MAX
from iotdb_cluster.requests import NO_REQUEST, Admission, RequestId, RequestWindow, refusal


class Model:
    """Everything ever applied, and the newest start and low of each node."""

    def __init__(self) -> None:
        self.applied: set[tuple[int, int, int]] = set()
        self.newest: dict[int, tuple[int, int]] = {}

    def admit(self, request: RequestId) -> Admission:
        node, start, sequence, low = request
        if not low <= sequence < low + REQUESTS_AHEAD_MAX:
            return Admission.TOO_FAR_AHEAD
        known_start, known_low = self.newest.get(node, (0, 0))
        if start < known_start:
            return Admission.OLD_START
        if start == known_start and sequence < known_low:
            return Admission.BELOW_LOW
        return Admission.APPLIED if (node, start, sequence) in self.applied else Admission.NEW

    def record(self, request: RequestId) -> None:
        node, start, sequence, low = request
        known_start, known_low = self.newest.get(node, (0, 0))
        self.newest[node] = (start, max(low, known_low) if start == known_start else low)
        self.applied.add((node, start, sequence))

    def merge(self, other: Model) -> None:
        for node, (start, low) in other.newest.items():
            mine = self.newest.get(node, (0, 0))
            self.newest[node] = max(mine, (start, low))
        self.applied |= other.applied


REQUESTS = st.builds(
    lambda node, start, low, ahead: RequestId(node, start, low + ahead, low),
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.integers(1, 20), st.integers(1_000, 1_050), st.integers(1, 5_000)),
    st.one_of(st.integers(-1, 20), st.sampled_from([1_023, 1_024, 2_048, REQUESTS_AHEAD_MAX - 1, REQUESTS_AHEAD_MAX])),
)


def play(requests: list[RequestId]) -> tuple[RequestWindow, Model]:
    window, model = RequestWindow(), Model()
    for request in requests:
        said = window.admit(request)
        assert said is model.admit(request)
        if said is Admission.NEW:
            window.record(request)
            model.record(request)
            assert window.admit(request) is Admission.APPLIED
    return window, model


@given(st.lists(REQUESTS, max_size=60), st.lists(REQUESTS, max_size=20))
@settings(max_examples=300, deadline=None)
def test_window_is_the_set_of_what_was_applied(requests: list[RequestId], probes: list[RequestId]) -> None:
    window, model = play(requests)
    loaded = RequestWindow.load(window.dump())
    assert loaded.dump() == window.dump()
    for probe in probes + requests:
        assert window.admit(probe) is model.admit(probe)
        assert loaded.admit(probe) is model.admit(probe)
    for node in (1, 2, 3):
        assert window.low_of(node) == model.newest.get(node, (0, 0))


@given(st.lists(REQUESTS, max_size=40), st.lists(REQUESTS, max_size=40), st.lists(REQUESTS, max_size=20))
@settings(max_examples=200, deadline=None)
def test_merge_is_newest_start_highest_low_and_union(
    left: list[RequestId], right: list[RequestId], probes: list[RequestId]
) -> None:
    window, model = play(left)
    other, other_model = play(right)
    reversed_window = RequestWindow.load(other.dump())
    reversed_window.merge(window)
    window.merge(other)
    model.merge(other_model)
    assert window.dump() == reversed_window.dump()
    for probe in probes + left + right:
        assert window.admit(probe) is model.admit(probe)


def test_memory_is_bounded_by_low() -> None:
    window = RequestWindow()
    for sequence in range(1, 50_000):
        window.record(RequestId(1, 1, sequence, max(1, sequence - 10)))
    (dumped,) = window.dump()
    assert len(dumped[3]) <= 2


def test_entries_without_identity_are_always_admitted() -> None:
    window = RequestWindow()
    window.record(NO_REQUEST)
    assert window.admit(NO_REQUEST) is Admission.NEW
    assert window.dump() == []


def test_an_older_start_is_never_recorded() -> None:
    window = RequestWindow()
    window.record(RequestId(1, 2, 1, 1))
    with pytest.raises(InvariantViolation):
        window.record(RequestId(1, 1, 1, 1))
    assert isinstance(refusal(RequestId(1, 1, 1, 1), Admission.OLD_START), OutcomeUnknown)
