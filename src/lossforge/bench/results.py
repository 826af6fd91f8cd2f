"""What was measured of one contender on one workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One contender on one workload. Times in seconds, memory in bytes; None is what could not be measured."""

    workload: str
    contender: str
    problem: str | None = None
    """Why there is nothing else: it is not installed, or it failed."""
    median: float | None = None
    stream: float | None = None
    """The median time of a pass that moves the same bytes, in the same run."""
    memory: int | None = None
    """The peak beyond the inputs and the gradient."""
    cold: float | None = None
    """The first call of a process, on small arrays, with nothing on disk; imports aside."""
    warm: float | None = None
    """The same with what an earlier process left on disk; the cold one for those who keep nothing there."""
    value: float | None = None
    """The loss on small arrays."""
    error: float | None = None
    """Of the gradient on small arrays, relative to its largest entry."""
    ulps: float | None = None
    """The same, in units of the last place of its entries."""
    spread: float | None = None
    """The middle half of the rounds, relative to the median."""
    call: float | None = None
    """On a GPU, the time from call to call, which the program that prepares the work may take longer for than the GPU;
    `median` is what the GPU itself is busy for."""
    rounds: tuple[float, ...] = ()
    """The time in each round."""

    @property
    def multiple(self) -> float | None:
        """The median as a multiple of the stream's."""
        return self.median / self.stream if self.median is not None and self.stream else None


def seconds(value: float | None) -> str:
    """A time with its unit."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def mebibytes(value: float | None) -> str:
    """A size in memory."""
    return "" if value is None else f"{max(value, 0) / 2**20:.1f} MiB"


def times(value: float | None) -> str:
    """A factor."""
    return "" if value is None else f"{value:.2f} ×"
