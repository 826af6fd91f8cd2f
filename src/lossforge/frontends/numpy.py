"""NumPy: functions of arrays, recorded through NumPy's own protocols.

A `Recorder` carries an array of drawn numbers, so that NumPy itself works out shapes and dtypes; what is done to it is
written down. SciPy's special functions are ufuncs, and arrive in the same way. What the protocols do not show (arrays
made by ``np.eye`` or ``np.array``, functions of SciPy that are written in Python) is recorded by stand-ins, which take
the place of the originals while the function runs; see `numpy_standins`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import Decisions, settle
from lossforge.frontends.numpy_copies import recording
from lossforge.frontends.numpy_operations import AT_ZERO, RULES
from lossforge.frontends.numpy_recorder import DECISION, Recorder, Selection, Tape, activate, plain
from lossforge.frontends.recording import Recording, Ref, kept, kept_numbers
from lossforge.frontends.sources import folder

_OWN = tuple(map(folder, ("lossforge", "numpy", "scipy")))


def _loss_of(result: Any) -> Any:
    """The loss alone, of a function that returns it with its gradient, or with statistics: a number in the first place."""
    if not isinstance(result, tuple) or not result:
        return result
    first = result[0]
    is_number = isinstance(first, int | float | np.generic | np.ndarray) and np.ndim(first) == 0
    return first if is_number or len(result) == 1 else result


class NumPyFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "numpy"
    by_differences = True
    patience = 30_000
    literal = AT_ZERO
    """Differences of the function on both sides know no infinite slope."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.traced = function, 0
        self.rules = RULES
        self.everywhere = False
        """Whether branches are choices wherever they stand, and not in loops alone; see `numpy_branches`."""

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        return inspect.signature(self.function)

    def attributes(self) -> dict[str, float]:
        """Numbers that an object keeps; a function has none."""
        return kept_numbers(self.function)

    def explain(self, error: Exception) -> str:
        """What an exception while recording means for the user."""
        return f"NumPy cannot run it at other sizes ({type(error).__name__}: {str(error)[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """Call the function once with recorders; again with its branches as choices, where it cannot be recorded else."""
        try:
            return self._record(arrays, parameters)
        except Exception:
            if self.everywhere:
                raise
            self.everywhere = True
            try:
                return self._record(arrays, parameters)
            except Exception:
                self.everywhere = False
            raise

    def _record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        tape = Tape()
        arguments = [tape.argument(np.array(a)).ref for a in arrays]

        def trace(decisions: Decisions) -> Any:
            tape.decisions = decisions
            inputs = [tape.argument(np.array(a), ref) for a, ref in zip(arrays, arguments, strict=True)]
            with recording(tape, self.function, self.everywhere) as function:
                return _loss_of(function(*inputs, **rest))

        def choose(condition: Recorder, chosen: Any, otherwise: Any) -> Any:
            if any(isinstance(v, Selection | list | tuple | dict | None) for v in (chosen, otherwise)):
                raise AdoptionError(DECISION)
            if np.shape(chosen) != np.shape(otherwise):
                raise AdoptionError(f"{DECISION}; the results of both ways have different shapes")
            activate(tape)
            try:
                value = np.where(*map(plain, (condition, chosen, otherwise)))
                return tape.note("where", (condition, chosen, otherwise), {}, value)
            finally:
                activate(None)

        with np.errstate(all="ignore"), kept(self.function, parameters) as rest:
            result = settle(trace, _OWN, DECISION, choose)
        self.traced += len(tape.steps)
        if isinstance(result, Selection):
            raise AdoptionError("the loss returned a selection by truth values, whose size depends on them; reduce it")
        if isinstance(result, int | float | np.generic):
            raise AdoptionError("the loss returned a number that was not computed by NumPy from its arguments")
        if type(result) is not Recorder:
            raise AdoptionError(
                f"the loss returned a {type(result).__name__}; expected one array or number, or a tuple with the loss, a "
                f"number, in the first place"
            )
        if not isinstance(result.ref, Ref):
            raise AdoptionError("the loss returned a constant")
        return Recording(tuple((tuple(a.shape),) for a in arrays), tuple(tape.steps), result.ref)

    def call(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> None:
        """Try whether the function takes arrays of these shapes and dtypes."""
        with np.errstate(all="ignore"), kept(self.function, parameters) as rest:
            self.function(*arrays, **rest)

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value; its gradient by central differences, since NumPy has no differentiation of its own."""
        exact = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        with np.errstate(all="ignore"), kept(self.function, parameters) as rest:
            value = np.asarray(_loss_of(self.function(*(a.copy() for a in exact), **rest)))
            gradients = [self._differences(exact, rest, i) for i in wrt]
        return value, gradients

    def _differences(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], which: int) -> np.ndarray:
        """Central differences; an entry whose two sides differ lies at a kink, and is left out (NaN)."""
        x = arrays[which]
        result = np.full(x.shape, np.nan)
        entries = list(np.ndindex(x.shape))

        def total(at: tuple[int, ...], by: float) -> float:
            changed = [a.copy() for a in arrays]
            changed[which][at] += by
            return float(np.sum(_loss_of(self.function(*changed, **parameters))))

        middle = total((0,) * x.ndim, 0.0) if entries else 0.0
        for at in entries[:: max(1, len(entries) // 24)]:
            slopes = []
            for step in (1e-5, 2e-5):
                ends = [total(at, step), total(at, -step)]
                slopes.append((ends[0] - ends[1]) / (2 * step))
                bend = abs(ends[0] + ends[1] - 2 * middle) / step
                size = max(abs(slopes[-1]), (abs(ends[0] - middle) + abs(ends[1] - middle)) / step, 1e-5)
                if bend > 1e-2 * size:
                    break
            else:
                if abs(slopes[0] - slopes[1]) <= 1e-5 * max(abs(slopes[0]), abs(slopes[1]), 1e-5):
                    result[at] = slopes[0]
        return result


def front_end(function: Callable[..., Any]) -> NumPyFrontEnd:
    """The front end for one function."""
    return NumPyFrontEnd(function)
