"""A function of another library as it was given: recorded, called, differentiated by its own library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lossforge.adoption.sampling import Sampler, entries
from lossforge.adoption.thresholds import fractions, thresholds, turning_sizes
from lossforge.errors import AdoptionError, LossforgeError
from lossforge.frontends.recording import FrontEnd, Recording, Ref
from lossforge.frontends.sources import first_line, names_a_line
from lossforge.ir import Kind

_LONG = 128
"""Steps of one way, as of loops that are written out; all ways take many times as long."""

_MANY_RECORDINGS = 24
"""Most losses are read from six to twenty."""
_MOST_ENTRIES = 2**22
"""Of an array that the function is tried with; if no array of the examples is as large."""


class Original:
    """A function with its arguments; it is asked for nothing twice, since a library's compiler may take seconds."""

    def __init__(
        self,
        name: str,
        front: FrontEnd,
        arrays: Sequence[np.ndarray],
        names: Sequence[str],
        numbers: Mapping[str, float],
        options: Mapping[str, Any],
        predictions: Sequence[str],
    ) -> None:
        self.name, self.front, self.predictions = name, front, tuple(predictions)
        self.arrays, self.names = list(arrays), list(names)
        self.numbers, self.options = dict(numbers), dict(options)
        """Numbers that may become parameters of the loss, and what stays as it is."""
        kinds = {"f": Kind.FLOAT, "b": Kind.BOOL, "i": Kind.INDEX}
        self.kinds = [kinds[a.dtype.kind] for a in arrays]
        self.samplers = [Sampler(a) for a in arrays]
        self._thresholds = thresholds(getattr(front, "function", None), numbers) if numbers else {}
        self.turning_sizes = turning_sizes(getattr(front, "function", None))
        """Sizes of axes for which the function may take other steps."""
        given = [v for v in {**self.options, **self.numbers}.values() if type(v) in (int, float)]
        known = [*given, *(v / 100 for v in given), *fractions(getattr(front, "function", None))]
        self.shares = [v for k in known for v in (k, 1 - k) if 0 < v < 1]
        """Parts that numbers of entries may be of sizes."""
        self._recordings: dict[Any, Recording | LossforgeError] = {}
        self._answers: dict[Any, tuple[np.ndarray, list[np.ndarray] | None]] = {}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of the examples."""
        return [a.shape for a in self.arrays]

    def check(self) -> None:
        """See that it gives one value for its arrays, as far as its library can tell.

        Raises:
            AdoptionError: it does not.
        """
        try:
            others = [s.example(a.shape) for s, a in zip(self.samplers, self.arrays, strict=True)]
            getattr(self.front, "check", lambda *_: None)(self.arrays, others, {**self.options, **self.numbers})
        except AdoptionError as error:
            raise AdoptionError(f"{self.name}: {error}") from None

    def record(self, shapes: Sequence[tuple[int, ...]], **changed: float) -> Recording:
        """What the function does with arrays of these shapes, and other values of some numbers.

        Raises:
            LossforgeError: it cannot be recorded.
        """
        return self._recorded(self.front.record, shapes, changed)

    def usual(self, shapes: Sequence[tuple[int, ...]], **changed: float) -> Recording:
        """What it does on its usual way, where decisions may lead to others; see `record`."""
        return self._recorded(getattr(self.front, "usual", self.front.record), shapes, changed)

    def outlined(self, shapes: Sequence[tuple[int, ...]]) -> Recording:
        """What it does, or what it does on its usual way alone if that is long: enough to tell axes by."""
        usual = self.usual(shapes)
        return usual if len(usual.steps) > _LONG else self.record(shapes)

    def refuses(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it was found that it cannot be recorded with arrays of these shapes."""
        return isinstance(self._recordings.get((self.front.record.__name__, tuple(shapes), ())), LossforgeError)

    def _recorded(
        self, record: Callable[..., Recording], shapes: Sequence[tuple[int, ...]], changed: Mapping[str, float]
    ) -> Recording:
        key = (record.__name__, tuple(shapes), tuple(sorted(changed.items())))
        if key not in self._recordings:
            arrays = [s.example(shape) for s, shape in zip(self.samplers, shapes, strict=True)]
            try:
                self._recordings[key] = record(arrays, {**self.options, **self.numbers, **changed})
            except LossforgeError as error:
                self._recordings[key] = error
            except Exception as error:
                refusal = AdoptionError(f"{self.name}: {self.front.explain(error)}")
                refusal.__cause__ = error
                self._recordings[key] = refusal
        found = self._recordings[key]
        if isinstance(found, LossforgeError):
            raise found
        return found

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Refusals name an operation and a line: if no other is known, that of the result, or the first one of the function."""
        try:
            yield
        except AdoptionError as error:
            if not names_a_line(str(error)):
                error.args = (f"{error}{self._place()}",)
            raise

    def _place(self) -> str:
        recordings = [r for r in self._recordings.values() if isinstance(r, Recording)]
        made = [s for r in recordings[-1:] for s in r.steps if r.result == Ref(s.outputs[0])]
        if made and made[0].where:
            return f". Its result is that of {made[0].told}"
        line = first_line(getattr(self.front, "function", None))
        return f". It begins at {line}" if line else ""

    def turning_points(self, name: str) -> list[float]:
        """Values of a number for which the function may take other steps: what it compares with, and numbers beside."""
        value, points = self.numbers[name], self._thresholds[name]
        found = [t + by for t in points for by in (0.0, 0.125 * max(abs(t), 1.0), -0.125 * max(abs(t), 1.0))]
        if isinstance(value, int):
            found = [int(t) + by for t in points for by in (0, 1, -1)]
        return [v for v in dict.fromkeys(found) if v != value]

    @property
    def tired(self) -> bool:
        """Whether so much was recorded that trying yet other sizes would take too long."""
        return self.front.traced > self.front.patience or len(self._recordings) > _MANY_RECORDINGS

    @property
    def exhausted(self) -> bool:
        """Whether it was so much that numbers had better stay what they are."""
        return self.front.traced > 4 * self.front.patience or len(self._recordings) > 2 * _MANY_RECORDINGS

    def run(
        self, arrays: Sequence[np.ndarray], numbers: Mapping[str, float]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The function's own value, and its gradient with respect to each prediction (None: its library has none)."""
        key = tuple((a.shape, a.dtype, a.tobytes()) for a in arrays), tuple(sorted(numbers.items()))
        if key not in self._answers:
            wrt = [self.names.index(p) for p in self.predictions]
            self._answers[key] = self.front.run(arrays, {**self.options, **numbers}, wrt)
        return self._answers[key]

    def takes(self, arrays: Sequence[np.ndarray], shapes_only: bool = False) -> bool:
        """Whether it can be called with these arrays; with arrays of these shapes, where that takes less time."""
        call = getattr(self.front, "call", None) if shapes_only else None
        try:
            if call is not None:
                call(arrays, {**self.options, **self.numbers})
            else:
                self.run(arrays, self.numbers)
        except Exception:  # whatever a function does with what it is not made for
            return False
        return True

    def takes_shapes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it can be called with arrays of these shapes, which are not too large to try."""
        if entries(shapes) > max(_MOST_ENTRIES, 2 * entries(self.shapes)):
            return False
        rng = np.random.default_rng(0)
        arrays = [s.draw(rng, shape, None) for s, shape in zip(self.samplers, shapes, strict=True)]
        # Positions may lie beyond the end of an axis, where 0 never does.
        first = [np.zeros_like(a) if a.dtype.kind == "i" else a for a in arrays]
        return any(self.takes(given, shapes_only=True) for given in (arrays, first, self.repeated(shapes)))

    def repeated(self, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The examples, repeated or cut to other shapes."""
        return [s.repeated(shape) for s, shape in zip(self.samplers, shapes, strict=True)]

    def forget(self) -> None:
        """Let go of what it gave: these are needed for the comparison, and no longer."""
        self._answers.clear()

    def gradient(self, front: FrontEnd) -> Original:
        """A gradient that was written by hand: another function of some of the arguments.

        Raises:
            AdoptionError: it takes another argument.
        """
        accepted = list(front.signature().parameters)
        if unknown := [a for a in accepted if a not in self.names and a not in self.numbers]:
            raise AdoptionError(
                f"{self.name}: the gradient asks for {unknown[0]!r}, which is neither an argument nor a parameter of "
                f"the loss"
            )
        names = [a for a in accepted if a in self.names]
        arrays = [self.arrays[self.names.index(a)] for a in names]
        numbers = {k: v for k, v in self.numbers.items() if k in accepted}
        return Original(f"{self.name}: the gradient", front, arrays, names, numbers, self.options, self.predictions)
