"""What the rules of several libraries have in common."""

from __future__ import annotations

from lossforge.frontends.positional import Importer, Refused, Rule, Tensor
from lossforge.frontends.recording import Step
from lossforge.ir import Kind


def kind_of(dtype: str) -> Kind:
    """Whether a dtype holds floats, integers or truth values."""
    if "complex" in dtype:
        raise Refused("complex numbers in this operation; use it on the real and imaginary parts")
    return Kind.FLOAT if "float" in dtype else Kind.BOOL if dtype.endswith("bool") else Kind.INDEX


def arithmetic(op: str) -> Rule:
    """An operation of the table whose result has the dtype that was recorded: that of integers are integers."""
    return lambda imp, step, *args: imp.cast(imp.elementwise(op, *args), kind_of(step.dtypes[0]))


def cut(imp: Importer, step: Step, t: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The pieces of a dimension, one after the other, as long as they were recorded."""
    at, pieces = [0] * imp.count, []
    for shapes in step.shapes:
        ends = [a + s[dim] for a, s in zip(at, shapes, strict=True)]
        pieces.append(imp.slice(t, dim, at, ends))
        at = ends
    return tuple(pieces)
