"""How long a tree takes to converge: a simulation fed with what `costs.py` measured.

Every node is told by a signal that a worker process sends, and runs a workflow task on some
worker process, its home; with children it then tells them, at most so many at once a process:
for one second in a local activity at home, for five in an ordinary one which any process may
take, and so on in turn. What is waited for are three things, each serving in the order of
arrival: the interpreter of each worker process, the server, and the rate limits.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shapes import SHAPES, count

LOCAL_SECONDS = 1.0
ORDINARY_SECONDS = 5.0
CALLS_A_NODE = 3
"""A signal, a poll and the answer of a workflow task: measured, 3.0 at 500 children."""


@dataclass(frozen=True)
class Costs:
    """Milliseconds.

    Attributes:
        signal_worker, task_worker: processor time of a worker process for one signal sent and
            for the workflow task that takes it.
        signal_server, task_server: time in which the server carries one of each, many at once.
        latency: what is waited for at one hop beside these, on an idle machine.
    """

    signal_worker: float
    task_worker: float
    signal_server: float
    task_server: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """What runs a tree.

    Attributes:
        workers: worker processes, of one processor each.
        servers: how many times as much as the measured one the server carries.
        calls_a_second: rate limit of the namespace; None for none.
        signals_a_second: `max_signals_per_second` of each worker process; None for none.
        at_once: signals in flight from one process.
    """

    workers: int = 1
    servers: float = 1.0
    calls_a_second: float | None = None
    signals_a_second: float | None = None
    at_once: int = 100


MEASURED = Costs(
    signal_worker=0.46, task_worker=2.55, signal_server=2.16, task_server=6.43, latency=17.9
)
"""Of the embedded server with its database in a file and one worker process, on two cores."""

SECONDS = {"1+500": 4.3, "chain of 50": 1.5, "10×10×10": 9.2, "1+1900": 16.6}
"""Measured there: until the last node of a shape held it."""


def converge(shape: Sequence[int], costs: Costs, cluster: Cluster) -> float:
    """Seconds until the last node of a tree holds what was set at its root.

    Args:
        shape: children of a node, by level.
    """
    return _Run(shape, costs, cluster).seconds()


class _Run:
    def __init__(self, shape: Sequence[int], costs: Costs, cluster: Cluster) -> None:
        self._shape = shape
        self._costs = replace(
            costs,
            signal_server=costs.signal_server / cluster.servers,
            task_server=costs.task_server / cluster.servers,
        )
        self._cluster = cluster
        # When each of these is free, or admits the next one, in milliseconds.
        self._worker = [0.0] * cluster.workers
        self._server = 0.0
        self._namespace = 0.0
        self._own = [0.0] * cluster.workers
        self._own_pause = _pause(cluster.signals_a_second)
        self._namespace_pause = CALLS_A_NODE * _pause(cluster.calls_a_second)
        self._places = [cluster.at_once] * cluster.workers
        self._waiting: list[deque[_Fanout]] = [deque() for _ in range(cluster.workers)]
        self._events: list[tuple[float, int, _Step, int, _Fanout]] = []
        self._pushed = 0
        self._random = random.Random(1).random  # noqa: S311 - which process takes a task
        self._last = 0.0

    def seconds(self) -> float:
        self._places[0] -= 1
        self._told(0.0, 0, _Fanout(1, -1, home=0))
        while self._events:
            at, _, step, process, fanout = heapq.heappop(self._events)
            step(at, process, fanout)
        return self._last / 1000

    # Each step begins at its time and says when the next one does.

    def _begin(self, at: float, process: int, fanout: _Fanout) -> None:
        fanout.until = at + 1000 * (ORDINARY_SECONDS if fanout.ordinary else LOCAL_SECONDS)
        fanout.ordinary = not fanout.ordinary
        self._waiting[process].append(fanout)
        self._tell(at, process)

    def _tell(self, at: float, process: int) -> None:
        """Take places for signals, as long as there are any."""
        waiting = self._waiting[process]
        while waiting and self._places[process]:
            fanout = waiting[0]
            admitted = max(at, self._own[process])
            if max(admitted, self._worker[process]) > fanout.until:
                waiting.popleft()
                runner = self._any_process() if fanout.ordinary else fanout.home
                self._then(at + 2 * self._costs.latency, self._begin, runner, fanout)
                continue
            self._own[process] = admitted + self._own_pause
            fanout.left -= 1
            if not fanout.left:
                waiting.popleft()
            self._places[process] -= 1
            self._now_or_then(at, admitted, self._call, process, fanout)

    def _call(self, at: float, process: int, fanout: _Fanout) -> None:
        admitted = max(at, self._namespace)
        self._namespace = admitted + self._namespace_pause
        self._now_or_then(at, admitted, self._send, process, fanout)

    def _send(self, at: float, process: int, fanout: _Fanout) -> None:
        self._then(self._work(at, process, self._costs.signal_worker), self._sent, process, fanout)

    def _sent(self, at: float, process: int, fanout: _Fanout) -> None:
        self._then(self._serve(at, self._costs.signal_server), self._told, process, fanout)

    def _told(self, at: float, process: int, fanout: _Fanout) -> None:
        self._places[process] += 1
        served = self._serve(at, self._costs.task_server)
        self._then(served, self._take, self._any_process(), fanout)
        self._tell(at, process)

    def _take(self, at: float, process: int, fanout: _Fanout) -> None:
        held = self._work(at, process, self._costs.task_worker) + self._costs.latency
        self._last = max(self._last, held)
        level = fanout.level + 1
        if level < len(self._shape):
            fanout = _Fanout(self._shape[level], level, home=process)
            self._then(held, self._begin, process, fanout)

    def _any_process(self) -> int:
        return int(self._random() * self._cluster.workers)

    def _work(self, at: float, process: int, cost: float) -> float:
        self._worker[process] = max(at, self._worker[process]) + cost
        return self._worker[process]

    def _serve(self, at: float, cost: float) -> float:
        self._server = max(at, self._server) + cost
        return self._server

    def _now_or_then(
        self, now: float, at: float, step: _Step, process: int, fanout: _Fanout
    ) -> None:
        if at > now:
            self._then(at, step, process, fanout)
        else:
            step(at, process, fanout)

    def _then(self, at: float, step: _Step, process: int, fanout: _Fanout) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at, self._pushed, step, process, fanout))


def _pause(a_second: float | None) -> float:
    return 0.0 if a_second is None else 1000 / a_second


class _Fanout:
    """Children of one node that are still to be told."""

    __slots__ = ("home", "left", "level", "ordinary", "until")

    def __init__(self, left: int, level: int, home: int) -> None:
        self.left = left
        self.level = level
        self.home = home
        self.until = 0.0
        self.ordinary = False  # whether the next attempt is one


_Step = Callable[[float, int, _Fanout], None]


@dataclass(frozen=True)
class Plan:
    """A line of the tables in docs/scaling.md."""

    shape: tuple[int, ...]
    cluster: Cluster


UNBOUNDED = 1e9
"""Of the server: on a cluster that was made large enough, its rate limit is what bounds."""

PLANS = (
    Plan((100, 999), Cluster(3, UNBOUNDED, 2_400)),
    Plan((100, 999), Cluster(12, UNBOUNDED, 9_600)),
    Plan((100, 999), Cluster(12, UNBOUNDED, 9_600, signals_a_second=50)),
    Plan((100, 999), Cluster(30, UNBOUNDED, 24_000)),
    Plan((100, 100, 99), Cluster(30, UNBOUNDED, 24_000)),
    Plan((600, 1665), Cluster(30, UNBOUNDED, 24_000)),
    Plan((100, 100, 99), Cluster(120, UNBOUNDED, 96_000)),
)


def compared(name: str) -> str:
    """A shape, what was measured, and what the simulation says, as a line of the table."""
    measured = SECONDS[name]
    seconds = converge(SHAPES[name], MEASURED, Cluster())
    return f"| {name} | {measured:.1f} s | {seconds:.1f} s | {seconds / measured - 1:+.0%} |"


def described(plan: Plan) -> str:
    """A plan as the table names it, without its last column."""
    cluster = plan.cluster
    limit = "none" if cluster.signals_a_second is None else f"{cluster.signals_a_second:g}"
    return (
        f"| {count(plan.shape):,} | {' × '.join(f'{n:,}' for n in plan.shape)} | {cluster.workers}"
        f" | {cluster.calls_a_second:,} | {limit} |"
    )


def planned(plan: Plan) -> str:
    """A plan and what the simulation says, as a line of the table."""
    return f"{described(plan)} {converge(plan.shape, MEASURED, plan.cluster):.0f} s |"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    for line in map(compared, SECONDS):
        print(line)
    for line in map(planned, PLANS):
        print(line, flush=True)


if __name__ == "__main__":
    main()
