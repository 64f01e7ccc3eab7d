"""The short form of `make powercut`: some of the first calls of a disk, power cut on one node, two, or all."""

from __future__ import annotations

from iotdb_cluster.simulation.powercut import CutResult, run_cut, run_cuts

CALLS = range(7, 2_000, 50)


def test_a_power_cut_at_any_call_loses_nothing() -> None:
    results: list[CutResult] = []
    cases = [(call, 1 + number % 3) for number, call in enumerate(CALLS)]
    run_cuts(cases, results.append)
    assert [result for result in results if result.failure or not result.struck] == []
    assert sorted((result.call, result.nodes) for result in results) == cases
    assert sum(result.deletes for result in results) > 100


def test_a_case_alone_is_the_one_that_was_forked() -> None:
    forked: list[CutResult] = []
    run_cuts([(400, 1), (400, 2), (650, 3)], forked.append, jobs=2)
    assert sorted(forked, key=lambda result: result.nodes) == [run_cut(400, 1), run_cut(400, 2), run_cut(650, 3)]
