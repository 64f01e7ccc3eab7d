"""Many seeds, on several processes."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

from iotdb_cluster.rpc.idl import client
from iotdb_cluster.simulation.swarm import SwarmFailure, SwarmResult, run_seed
from iotdb_cluster.sql import warm_up

__all__ = ["Run", "run", "runs"]


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one seed: a result, or why it failed."""

    seed: int
    result: SwarmResult | None
    failure: str
    cpu_s: float

    @property
    def line(self) -> str:
        if self.result is None:
            return self.failure
        found = self.result
        return (
            f"seed {self.seed}: {found.nodes} nodes, {found.acknowledged} acknowledged, {found.unknown} unknown, "
            f"{found.refused} refused, "
            f"{found.crashes} crashes, {found.events} events in {found.virtual_ms / 1000:.1f} virtual s, "
            f"{self.cpu_s:.2f} s of CPU, digest {found.digest}"
        )


def _begin(level: int) -> None:
    """What a process does once: its first seed would pay for that. `level`: log records up to it are dropped."""
    logging.disable(level)
    client()
    warm_up()


def run(seed: int, of: Callable[[int], SwarmResult] = run_seed) -> Run:
    began = time.process_time()
    try:
        result, failure = of(seed), ""
    except SwarmFailure as error:
        result, failure = None, str(error)
    return Run(seed, result, failure, time.process_time() - began)


def runs(seeds: Iterator[int], jobs: int, of: Callable[[int], SwarmResult] = run_seed) -> Iterator[Run]:
    """Run seeds, at most one more a process than is asked for at any time; `of` is what a seed is a run of."""
    if jobs == 1:
        _begin(logging.root.manager.disable)
        for seed in seeds:
            yield run(seed, of)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _begin, (logging.root.manager.disable,)) as pool:
        under_way: set[Future[Run]] = set()
        try:
            for seed in seeds:
                under_way.add(pool.submit(run, seed, of))
                if len(under_way) > jobs:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from sorted((future.result() for future in done), key=lambda one: one.seed)
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from sorted((future.result() for future in done), key=lambda one: one.seed)
        finally:
            pool.shutdown(cancel_futures=True)
