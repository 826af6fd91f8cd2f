"""JAX: functions, as the jaxpr that `jax.make_jaxpr` gives."""

from __future__ import annotations

import enum
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lossforge.errors import AdoptionError
from lossforge.frontends.jax_custom import QUICK, custom_rule, is_float, is_own
from lossforge.frontends.jax_operations import RULES
from lossforge.frontends.jax_recurrences import INLINED, all_rounds, in_turn
from lossforge.frontends.recording import Recording, Ref, Step, as_written, kept, kept_numbers, rounded

_WHOLE = frozenset({"inv", "solve", "_solve", "det", "slogdet", "logaddexp"})
"""Functions of JAX that are read as such, not as the decompositions and choices which they are made of."""
_MOST_ROUNDS = 64
_MOST_STEPS = 1024


class JaxFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "jax"
    patience = 30_000

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.traced = function, 0
        self.rules = RULES

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        return inspect.signature(self.function)

    def attributes(self) -> dict[str, float]:
        """Numbers that an object keeps; a function has none."""
        return kept_numbers(self.function)

    def explain(self, error: Exception) -> str:
        """What an exception of the tracer means for the user."""
        text = (str(error).strip().splitlines() or [""])[0]
        if any(k.__name__ in ("ConcretizationTypeError", "TracerArrayConversionError") for k in type(error).__mro__):
            return (
                f"it takes a decision or a Python number from values ({text[:200]}); use jnp.where instead of `if`, and "
                f"jax.numpy instead of numpy"
            )
        return f"JAX cannot run it at other sizes or trace it ({type(error).__name__}: {text[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """Call the function once under `make_jaxpr`."""
        with _scans_as_loops(), kept(self.function, parameters) as rest:
            closed = jax.make_jaxpr(lambda *a: self.function(*a, **rest))(*map(_narrow, arrays))
        if len(closed.jaxpr.outvars) != 1:
            raise AdoptionError("the loss returned several values; expected one array")
        recording = _Reader(closed, arrays).recording
        self.traced += len(recording.steps)
        return recording

    def call(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> None:
        """Try whether the function takes arrays of these shapes and dtypes, without compiling it."""
        with kept(self.function, parameters) as rest:
            jax.eval_shape(lambda *a: self.function(*a, **rest), *map(_narrow, arrays))

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value, and the gradient of its sum by `jax.grad`; in float64 where the arrays are."""
        wide = any(a.dtype == np.float64 for a in arrays)
        with jax.enable_x64(True) if wide else nullcontext(), kept(self.function, parameters) as rest:
            given = [jax.numpy.asarray(_narrow(a)) for a in arrays]

            @jax.jit(compiler_options=QUICK)
            def both(*a: Any) -> Any:
                slopes = jax.grad(lambda *b: self.function(*b, **rest).sum(), argnums=tuple(wrt))(*a)
                return self.function(*a, **rest), slopes

            value, slopes = both(*given)
            return np.asarray(value), [np.asarray(s) for s in slopes]


def front_end(function: Callable[..., Any]) -> JaxFrontEnd:
    """The front end for one function."""
    return JaxFrontEnd(function)


@contextmanager
def _scans_as_loops() -> Iterator[None]:
    """`jax.lax.associative_scan`, which tracing writes out for one length, as a loop that holds for every one."""
    original = jax.lax.associative_scan
    jax.lax.associative_scan = in_turn
    try:
        yield
    finally:
        jax.lax.associative_scan = original


def _narrow(a: np.ndarray) -> np.ndarray:
    return a.astype(np.int32) if a.dtype == np.int64 else a


class _Reader:
    """A jaxpr as a straight list of steps: calls inlined, loops of a fixed number of rounds written out."""

    def __init__(self, closed: Any, arrays: Sequence[np.ndarray]) -> None:
        self.count = itertools.count()
        self.steps: list[Step] = []
        self.within_rule = False
        refs = [Ref(next(self.count)) for _ in closed.jaxpr.invars]
        (result,) = self.run(closed.jaxpr, closed.consts, refs)
        self.recording = Recording(tuple((tuple(a.shape),) for a in arrays), tuple(self.steps), result)

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The steps of a jaxpr; what it gives."""
        known: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        known.update(zip(jaxpr.constvars, map(_constant, consts), strict=True))

        def read(v: Any) -> Any:
            return _constant(v.val) if isinstance(v, core.Literal) else known[v]

        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [read(v) for v in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        name = eqn.primitive.name
        if name in ("custom_jvp_call", "custom_vjp_call"):
            return self._custom(eqn, ins)
        if eqn.params.get("name") == "_linspace" and _reaches_its_end(eqn):
            return self._note("linspace", ins, {}, [v.aval for v in eqn.outvars], _where(eqn))
        if eqn.params.get("name") in _WHOLE and is_own(eqn.params["jaxpr"]):
            return self._note(eqn.params["name"].lstrip("_"), ins, {}, [v.aval for v in eqn.outvars], _where(eqn))
        if name in INLINED:
            return self._inline(eqn.params[INLINED[name]], ins)
        if name == "platform_index":  # a loss is the same on every platform
            platforms = eqn.params["platforms"]
            return [platforms.index(None) if None in platforms else len(platforms) - 1]
        if name == "cond":
            return self._branches(eqn, ins)
        if name == "scan" and (every := all_rounds(eqn)) is not None:
            return self._inline(every, ins)
        if name == "scan" and self._rounds(eqn) <= _MOST_STEPS and eqn.params["length"] <= _MOST_ROUNDS:
            return self._loop(eqn, ins)
        return self._note(
            name,
            ins,
            {k: _attribute(p) for k, p in eqn.params.items() if k not in ("sharding", "out_sharding", "mesh")}
            | {"rank": tuple(len(v.aval.shape) for v in eqn.invars)},
            [v.aval for v in eqn.outvars],
            _where(eqn),
        )

    def _note(
        self, name: str, ins: Sequence[Any], attrs: Mapping[str, Any], avals: Sequence[Any], where: str
    ) -> list[Any]:
        numbers = tuple(next(self.count) for _ in avals)
        shapes = tuple((tuple(a.shape),) for a in avals)
        self.steps.append(Step(name, tuple(ins), attrs, numbers, shapes, where, tuple(str(a.dtype) for a in avals)))
        return [Ref(n) for n in numbers]

    def _inline(self, inner: Any, ins: Sequence[Any]) -> list[Any]:
        body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
        return self.run(body, constants, ins)

    def _branches(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """A branch on a constant is that branch; one on values is a choice between the results of all."""
        which, *rest = ins
        branches = eqn.params["branches"]
        if isinstance(which, int):
            return self._inline(branches[min(max(int(which), 0), len(branches) - 1)], rest)
        cases = [self._inline(b, rest) for b in branches]
        return [
            self._note("select_n", (which, *outs), {}, [v.aval], _where(eqn))[0]
            for v, *outs in zip(eqn.outvars, *cases, strict=True)
        ]

    def _rounds(self, eqn: Any) -> int:
        return int(eqn.params["length"]) * len(eqn.params["jaxpr"].jaxpr.eqns)

    def _loop(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        given, where = eqn.params, _where(eqn)
        body = given["jaxpr"]
        first, second = given["num_consts"], given["num_consts"] + given["num_carry"]
        constants, state, arrays = list(ins[:first]), list(ins[first:second]), ins[second:]
        each = [v.aval for v in body.jaxpr.invars[second:]]
        results: list[list[Any]] = []
        order = range(given["length"])
        for i in reversed(order) if given["reverse"] else order:
            entries = [
                self._note("entry", (a,), {"index": i}, [aval], where)[0] for a, aval in zip(arrays, each, strict=True)
            ]
            outs = self._inline(body, [*constants, *state, *entries])
            state = outs[: len(state)]
            results.append(outs[len(state) :])
        if given["reverse"]:
            results.reverse()
        stacked = [
            self._note("stacked", column, {}, [v.aval], where)[0]
            for v, column in zip(eqn.outvars[len(state) :], zip(*results, strict=True), strict=True)
        ]
        return [*state, *stacked]

    def _custom(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """A function with a derivative of its own: read as it is where that is its derivative, else with the rule."""
        body = eqn.params["call_jaxpr"]
        name = getattr(body.jaxpr.debug_info, "func_name", None)
        if name in _WHOLE and is_own(body):
            return self._note(name, ins, {}, [v.aval for v in eqn.outvars], _where(eqn))
        outs = self._inline(body, ins)
        rule = None if self.within_rule else custom_rule(eqn)
        if rule is None:
            return outs
        self.within_rule = True  # the function occurs again in its rule, held fixed
        slopes = self._inline(rule, ins)
        self.within_rule = False
        where = _where(eqn)
        return [
            self._note("surrogate", (out, slope), {}, [v.aval], where)[0] if is_float(v.aval) else out
            for v, out, slope in zip(eqn.outvars, outs, slopes, strict=True)
        ]


def _reaches_its_end(eqn: Any) -> bool:
    """Whether this call of `jnp.linspace` gives a vector of several numbers, and the end among them."""
    operations = [e.primitive.name for e in eqn.params["jaxpr"].jaxpr.eqns]
    return eqn.outvars[0].aval.ndim == 1 and len(eqn.invars) == 2 and "concatenate" in operations


def _attribute(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, int | float | str | bool | None):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        return {n: _attribute(v) for n, v in zip(names, value, strict=True)} if names else tuple(map(_attribute, value))
    fields = getattr(value, "__dataclass_fields__", None)
    if fields:
        return {n: _attribute(getattr(value, n)) for n in fields}
    return str(value) if not callable(value) else getattr(value, "__name__", "function")


def _constant(value: Any) -> Any:
    array = np.asarray(value)
    if array.ndim:
        return as_written(array)
    return rounded(array.item()) if array.dtype.kind == "f" else array.item()


def _where(eqn: Any) -> str:
    from jax._src import source_info_util

    try:
        frame = source_info_util.user_frame(eqn.source_info.traceback)
    except (AttributeError, TypeError):
        return ""
    return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.start_line}" if frame else ""
