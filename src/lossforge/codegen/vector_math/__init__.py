"""Vector mathematics for the Numba kernels: exp, log and the rest, as code that LLVM inlines and vectorises.

A kernel imports what it calls, and calls it with float32 or with float64 numbers::

    from lossforge.codegen.vector_math import exp

    @numba.njit(fastmath={"contract", "reassoc", "nsz", "arcp"})
    def kernel(x, out):
        for i in range(x.size):
            out[i] = exp(x[i])

They are known inside compiled code only. Fast-math flags do not reach inside (see `emit`), so accuracy does
not depend on them. NaN in gives NaN out, but for pow(x, 0) and pow(1, y), which are 1 for any argument, as
IEEE 754 has it.

A float32 result is within 2 ulp of the exact one, for every argument there is: denormals, infinities and
angles of any size included. All 2**32 arguments of the functions of one argument have been tried;
`tests/test_vector_math.py` does it again when it is run as a script. The exception is logaddexp(x, y) where
its terms cancel: the error is then at most 2**-50 max(|x|, |y|).

A float64 result is within 4 ulp; for digamma 6, and below 0 relative to max(1, |result|); for polygamma 8
up to order 4. For sin, cos, tan, atan2, pow and lgamma it is the C library's, by a call for each element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossforge.codegen.vector_math import exponential, special, trigonometric
from lossforge.codegen.vector_math.emit import FULL, SINGLE, WIDE, as_intrinsic

FUNCTIONS: Mapping[str, Any] = {
    name: as_intrinsic(name, formula, single, arity)
    for name, formula, single, arity in (
        # Where memory speed is at stake, float32 arithmetic ...
        ("exp", exponential.exp, SINGLE, 1),
        ("expm1", exponential.expm1, SINGLE, 1),
        ("log", exponential.log, SINGLE, 1),
        ("log1p", exponential.log1p, SINGLE, 1),
        ("xlogy", exponential.xlogy, SINGLE, 2),
        ("sigmoid", exponential.sigmoid, SINGLE, 1),
        ("log_sigmoid", exponential.log_sigmoid, SINGLE, 1),
        ("softplus", exponential.softplus, SINGLE, 1),
        ("tanh", exponential.tanh, SINGLE, 1),
        ("erf", special.erf, SINGLE, 1),
        # ... elsewhere float64, rounded once: by short polynomials ...
        ("pow", exponential.power, WIDE, 2),
        ("sinh", exponential.sinh, WIDE, 1),
        ("cosh", exponential.cosh, WIDE, 1),
        ("asinh", exponential.asinh, WIDE, 1),
        ("acosh", exponential.acosh, WIDE, 1),
        ("atanh", exponential.atanh, WIDE, 1),
        ("sin", trigonometric.sin, WIDE, 1),
        ("cos", trigonometric.cos, WIDE, 1),
        ("tan", trigonometric.tan, WIDE, 1),
        ("asin", trigonometric.asin, WIDE, 1),
        ("acos", trigonometric.acos, WIDE, 1),
        ("atan", trigonometric.atan, WIDE, 1),
        ("atan2", trigonometric.atan2, WIDE, 2),
        ("erfc", special.erfc, WIDE, 1),
        # ... or, where terms cancel, by full ones.
        ("logaddexp", exponential.logaddexp, FULL, 2),
        ("lgamma", special.lgamma, FULL, 1),
        ("digamma", special.digamma, FULL, 1),
        ("polygamma", special.polygamma, FULL, 2),
    )
}
"""The callables by the name of the operation, as in `lossforge.primitives`."""

VARIANTS: Mapping[str, Any] = {
    "exp_nonpositive": as_intrinsic("exp_nonpositive", exponential.exp_negative, SINGLE, 1),
}
"""Cheaper ones for arguments that are known to lie in a part of the domain."""


def __getattr__(name: str) -> Any:
    """So that a kernel's source can say `from lossforge.codegen.vector_math import exp`."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if name in VARIANTS:
        return VARIANTS[name]
    raise AttributeError(f"module {__name__!r} has no function {name!r}; it has {', '.join(FUNCTIONS)}")
