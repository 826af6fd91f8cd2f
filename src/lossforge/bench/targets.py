"""What lossforge must reach on a workload, judged from the results of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lossforge.bench.results import Result, mebibytes, seconds, times

Results = Mapping[tuple[str, str], Result]
"""By workload and contender."""
Found = Sequence[tuple[str, float | None]]
"""Whom a target concerns, and what was measured of each."""


@dataclass(frozen=True)
class Target:
    """A bound on what was measured."""

    text: str
    limit: float
    find: Callable[[str, Results], Found]
    """What was measured on a workload."""
    shown: Callable[[float], str] = times
    at_least: bool = False
    """Whether the limit is a lower one."""

    def judge(self, workload: str, results: Results) -> tuple[str, bool | None]:
        """What was measured, and whether the target is met; None where that is open.

        One contender that breaks the bound suffices to miss it; to meet it takes all of them.
        """
        found = self.find(workload, results)
        known = {name: value for name, value in found if value is not None}
        if not known:
            return "", None
        worst = (min if self.at_least else max)(known, key=lambda name: known[name])
        lacking = [name for name, value in found if value is None]
        said = self.shown(known[worst]) + (f" ({worst})" if len(found) > 1 else "")
        said += f"; without {', '.join(lacking)}" if lacking else ""
        if known[worst] < self.limit if self.at_least else known[worst] > self.limit:
            return said, False
        return said, None if lacking else True


def stream(who: str, limit: float) -> Target:
    """At most so many times the stream."""
    return Target(f"{who} ≤ {limit} × stream", limit, lambda w, r: [(who, _of(r, w, who).multiple)])


def faster(who: str, factor: float, others: Sequence[str]) -> Target:
    """So many times as fast as each of some others."""

    def find(workload: str, results: Results) -> Found:
        return [(other, _ratio(_of(results, workload, other), _of(results, workload, who))) for other in others]

    named = others[0] if len(others) == 1 else "each of the others" if len(others) > 3 else ", ".join(others)
    return Target(f"{who} ≥ {factor} × faster than {named}", factor, find, at_least=True)


def within(who: str, factor: float, other: str) -> Target:
    """At most so many times the time of another."""

    def find(workload: str, results: Results) -> Found:
        return [(other, _ratio(_of(results, workload, who), _of(results, workload, other)))]

    return Target(f"{who} ≤ {factor} × {other}", factor, find)


def level(who: str, factor: float, other: str) -> Target:
    """As fast as on another workload, up to a factor either way."""

    def find(workload: str, results: Results) -> Found:
        here, there = _of(results, workload, who), _of(results, other, who)
        return [(f"as against {other}", _ratio(here, there)), (f"{other} as against this", _ratio(there, here))]

    return Target(f"{who} within {factor} × of {other}", factor, find)


def rounded(who: str) -> Target:
    """A gradient that is the exact one, rounded: half a unit of the last place, and a little for float32 before."""
    return Target(
        f"{who}: error ≤ ½ ulp", 0.51, lambda w, r: [(who, _of(r, w, who).ulps)], lambda ulps: f"{ulps:.3f} ulp"
    )


def frugal(who: str, rows: int = 0) -> Target:
    """A mebibyte beyond inputs and gradient, and 64 bytes for each row."""
    limit = (1 << 20) + 64 * rows
    return Target(f"{who}: memory ≤ {mebibytes(limit)}", limit, lambda w, r: [(who, _of(r, w, who).memory)], mebibytes)


def prompt(who: str, cold: float = 1.5, warm: float = 0.1) -> tuple[Target, Target]:
    """First calls, with nothing on disk and with kernels there."""
    return (
        Target(f"{who}: first call ≤ {seconds(cold)}", cold, lambda w, r: [(who, _of(r, w, who).cold)], seconds),
        Target(f"{who}: … from disk ≤ {seconds(warm)}", warm, lambda w, r: [(who, _of(r, w, who).warm)], seconds),
    )


def _of(results: Results, workload: str, contender: str) -> Result:
    return results.get((workload, contender)) or Result(workload, contender)


def _ratio(mine: Result, other: Result) -> float | None:
    """How many times the time of another; round by round where both ran in the same, as the machine's pace drifts."""
    if mine.rounds and len(mine.rounds) == len(other.rounds) and mine.workload == other.workload:
        return statistics.median(a / b for a, b in zip(mine.rounds, other.rounds, strict=True))
    return mine.median / other.median if mine.median and other.median else None
