"""Functions with a derivative of their own: `jax.custom_jvp` and `jax.custom_vjp`.

Most rules are the function's derivative, written more stably; lossforge derives and stabilises by itself. Others are
not (straight-through estimators, reversed gradients), and are part of the loss. Which it is, is tried on numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lossforge.errors import AdoptionError

_NEAR = 1e-4
QUICK = {"xla_backend_optimization_level": 0}
"""For what runs once for each set of shapes."""


def custom_rule(eqn: Any) -> Any:
    """A jaxpr of the equation's operands whose derivative is what the rule says; None if the function's own is.

    It is linear in the operands: J(x₀) · x, with the rule's Jacobian J at x₀ = x held fixed.

    Raises:
        AdoptionError: the rule is no derivative, since it is not linear.
    """
    if is_own(eqn.params["call_jaxpr"]):  # JAX's own rules are derivatives
        return None
    operands = eqn.invars
    moving = [i for i, v in enumerate(operands) if not isinstance(v, core.Literal) and is_float(v.aval)]
    if not moving:
        return None
    body = core.jaxpr_as_fun(eqn.params["call_jaxpr"])

    def ruled(*values: Any) -> Any:
        found = eqn.primitive.get_bind_params(eqn.params)
        functions, options = found if isinstance(found, tuple) else ((), found)  # before JAX 0.10
        return eqn.primitive.bind(*functions, *values, **options)

    def of_moving(function: Callable[..., Any], values: Sequence[Any]) -> Callable[..., list[Any]]:
        """A function of the operands that move, and its floating results; the others stay at `values`."""

        def call(*xs: Any) -> list[Any]:
            full = list(values)
            for i, x in zip(moving, xs, strict=True):
                full[i] = x
            return [y for y in function(*full) if is_float(y)]

        return call

    rng = np.random.default_rng(3)
    point = [jax.numpy.asarray(v.val) if isinstance(v, core.Literal) else drawn(rng, v.aval) for v in operands]
    floats = [v for v in eqn.outvars if is_float(v.aval)]
    seeds = [jax.numpy.asarray(rng.standard_normal(v.aval.shape), v.aval.dtype) for v in (*floats, *floats)]

    def tried(values: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
        """By the rule and by the derivative for one seed; by the rule for a sum of seeds, at once and apart."""
        at = [values[i] for i in moving]
        _, back = jax.vjp(of_moving(ruled, values), *at)
        _, derived = jax.vjp(of_moving(body, values), *at)
        one, two = list(seeds[: len(floats)]), list(seeds[len(floats) :])
        theirs = back(one)
        both = back([a + 3 * b for a, b in zip(one, two, strict=True)])
        return [theirs, derived(one), both, [a + 3 * b for a, b in zip(theirs, back(two), strict=True)]]

    is_derivative, is_linear = _verdict(tried, point, seeds)
    if is_derivative:
        return None
    if not is_linear:
        raise AdoptionError(
            f"{eqn.primitive.name}: a rule that is not the derivative of anything, since it is not linear in the gradient "
            f"that comes in (it clips or normalises it); do that to the gradients in training, not in the loss"
        )

    def linear(*values: Any) -> list[Any]:
        held = [jax.lax.stop_gradient(x) for x in values]
        function, xs = of_moving(ruled, held), [values[i] for i in moving]
        start = [held[i] for i in moving]
        if eqn.primitive.name == "custom_jvp_call":
            slopes = jax.jvp(function, start, xs)[1]
        else:
            results, pull = jax.vjp(function, *start)
            slopes = list(jax.linear_transpose(lambda *seeds: pull(list(seeds)), *results)(tuple(xs)))
        left = iter(slopes)
        return [next(left) if is_float(v.aval) else jax.numpy.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars]

    return jax.make_jaxpr(linear)(*(jax.numpy.zeros(v.aval.shape, v.aval.dtype) for v in operands))


def is_own(closed: Any) -> bool:
    """Whether a jaxpr is that of a function of JAX."""
    of = getattr(closed.jaxpr.debug_info, "func_filename", None)
    return of is not None and Path(of).is_relative_to(Path(jax.__file__).parent)


_SIZES = re.compile(r"\[[0-9,]*\]|shape=\([0-9, ]*\)")
_verdicts: dict[str, tuple[bool, bool]] = {}
"""By the text of what was tried, whatever its sizes: a rule such as that of `jax.nn.relu` is met again and again."""


def _verdict(tried: Callable[..., Any], *args: Any) -> tuple[bool, bool]:
    """Whether a rule is the derivative, and whether it is linear."""
    traced = jax.jit(tried, compiler_options=QUICK).trace(*args)
    jaxpr = traced.jaxpr
    key = _SIZES.sub(lambda found: "," * found[0].count(","), str(jaxpr.jaxpr))
    key += str([np.asarray(c).tobytes() for c in jaxpr.consts])
    if key not in _verdicts:
        theirs, mine, both, apart = traced.lower().compile()(*args)
        _verdicts[key] = all(map(is_near, theirs, mine)), all(map(is_near, both, apart))
    return _verdicts[key]


def is_float(x: Any) -> bool:
    """Whether it holds floats."""
    return str(x.dtype).startswith(("float", "bfloat"))


def drawn(rng: np.random.Generator, aval: Any) -> Any:
    """Values of many sizes, of which some are small: those of a function's argument, whatever it is."""
    if is_float(aval):
        return jax.numpy.asarray(
            rng.uniform(0.05, 0.95, aval.shape) * rng.choice([0.5, 1.0, 3.0], aval.shape), aval.dtype
        )
    return jax.numpy.asarray(rng.integers(0, 2, aval.shape), aval.dtype)


def is_near(a: Any, b: Any) -> bool:
    """Whether they agree as far as float32 does, where both are finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    return bool((np.abs(a - b)[known] <= _NEAR * max(float(np.max(np.abs(a[known]), initial=0.0)), 1e-6)).all())
