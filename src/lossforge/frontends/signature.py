"""Signatures: which axes each argument has, and in which order.

``"batch class *space, batch *space -> batch *space"``: one group of axis names for each array argument, and the axes
of the loss before it is reduced. A starred name stands for any number of axes.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lossforge.errors import ShapeError, SignatureError
from lossforge.ir import Axis

ELEMENTWISE: Axis = "*shape"
"""The axes of a loss without a signature: all arguments share all of them."""


@dataclass(frozen=True)
class Signature:
    """The axes of the arguments and of the unreduced loss (None: whatever the definition leaves)."""

    arguments: tuple[tuple[Axis, ...], ...]
    output: tuple[Axis, ...] | None = None

    def __str__(self) -> str:
        left = ", ".join(" ".join(axes) for axes in self.arguments)
        return left if self.output is None else f"{left} -> {' '.join(self.output)}".rstrip()


def parse_signature(text: str) -> Signature:
    """Read a signature.

    Raises:
        SignatureError: with the place and what was expected there.
    """
    left, arrow, right = text.partition("->")
    arguments = tuple(_axes(part, text) for part in left.split(","))
    if not arrow:
        return Signature(arguments)
    output = _axes(right, text)
    known = {a for axes in arguments for a in axes}
    if unknown := [a for a in output if a not in known]:
        raise SignatureError(
            f"signature {text!r}: the output axis {unknown[0]!r} belongs to no argument (these have: "
            f"{', '.join(sorted(known)) or 'none'})"
        )
    return Signature(arguments, output)


def _axes(part: str, text: str) -> tuple[Axis, ...]:
    names = tuple(part.split())
    for name in names:
        if not name.removeprefix("*").isidentifier():
            raise SignatureError(
                f"signature {text!r}: {name!r} is not an axis name; write names separated by spaces, such as "
                f"'batch class *space', and a comma between arguments"
            )
    if len(set(names)) < len(names):
        raise SignatureError(f"signature {text!r}: an axis occurs twice in {part.strip()!r}; use lf.rename for a copy")
    if sum(n.startswith("*") for n in names) > 1:
        raise SignatureError(f"signature {text!r}: more than one starred name in {part.strip()!r} is ambiguous")
    return names


def dimensions(order: Sequence[Axis], rank: int) -> dict[Axis, slice]:
    """Which dimensions of an array of `rank` belong to each axis of `order`."""
    surplus = rank - (len(order) - any(a.startswith("*") for a in order))
    result, start = {}, 0
    for axis in order:
        width = surplus if axis.startswith("*") else 1
        result[axis] = slice(start, start + width)
        start += width
    return result


def check_shapes(
    loss: str, names: Sequence[str], orders: Sequence[Sequence[Axis]], shapes: Sequence[Sequence[int | None]]
) -> dict[Axis, tuple[int | None, ...]]:
    """Bind shapes to axes: the sizes of each axis (several for a starred one).

    Sizes may be None (not known yet, as in a traced TensorFlow function); those are not compared.

    Raises:
        ShapeError: an argument has the wrong number of dimensions, or two arguments disagree about an axis.
    """
    bound: dict[Axis, tuple[tuple[int | None, ...], str]] = {}
    for name, order, shape in zip(names, orders, shapes, strict=True):
        shape = tuple(shape)
        named = [a for a in order if not a.startswith("*")]
        if len(shape) < len(named) or (len(named) == len(order) and len(shape) != len(named)):
            least = "at least " if len(named) < len(order) else ""
            raise ShapeError(
                f"{loss}: argument {name!r} has {_dims(len(shape))}, shape {shape}, but its axes are "
                f"({', '.join(order)}), which takes {least}{_dims(len(named))}"
            )
        for axis, part in dimensions(order, len(shape)).items():
            here = shape[part]
            if axis not in bound:
                bound[axis] = (here, name)
                continue
            there, other = bound[axis]
            if len(here) != len(there) or any(a != b for a, b in zip(here, there, strict=True) if None not in (a, b)):
                raise ShapeError(_disagreement(loss, name, axis, here, other, there))
            bound[axis] = (tuple(b if a is None else a for a, b in zip(here, there, strict=True)), other)
    return {axis: found for axis, (found, _) in bound.items()}


def _dims(n: int) -> str:
    return f"{n} dimension" + ("" if n == 1 else "s")


def _disagreement(
    loss: str, name: str, axis: Axis, here: tuple[int | None, ...], other: str, there: tuple[int | None, ...]
) -> str:
    if axis == ELEMENTWISE:
        hint = ""
        if math.prod(n or 1 for n in here) == math.prod(n or 1 for n in there):
            hint = f"; reshape one of them, as in {name}.reshape({other}.shape)"
        return (
            f"{loss}: argument {name!r} has shape {here}, but {other!r} has {there}; axis {axis!r}: this loss is "
            f"elementwise and broadcasts nothing{hint}"
        )
    size = here if axis.startswith("*") else here[0]
    expected = there if axis.startswith("*") else there[0]
    return f"{loss}: axis {axis!r} has size {size} in argument {name!r}, but {expected} in {other!r}"


def lay(
    loss: str,
    name: str,
    order: Sequence[Axis],
    sizes: Mapping[Axis, tuple[int | None, ...]],
    shape: Sequence[int | None],
) -> tuple[tuple[Axis, ...], tuple[int, ...]] | None:
    """How a weight or mask of `shape` lies on a loss with the axes `order`.

    It may be a scalar, have the leading axes (one weight a sample), or all of them, with 1 for those it is constant
    along. Returns the axes that it has and the dimensions (of size 1) to drop; None if it covers a starred axis only
    in part, so that this must be split.

    Raises:
        ShapeError: none of these.
    """
    shape = tuple(shape)
    expected = tuple(n for a in order for n in sizes[a])
    same = [m == n or None in (m, n) for m, n in zip(shape, expected, strict=False)]
    leading = len(shape) <= len(expected) and all(same)
    if not leading and not (len(shape) == len(expected) and all(s or m == 1 for s, m in zip(same, shape, strict=True))):
        raise ShapeError(
            f"{loss}: {name} has shape {shape}, but the loss has shape {expected} along ({', '.join(order)}); give one "
            f"{name} for each entry, or one for each of the leading axes, or 1 for an axis along which it is constant"
        )
    kept: list[Axis] = []
    dropped: list[int] = []
    at = 0
    for axis in order:
        part = range(at, at + len(sizes[axis]))
        at = part.stop
        if part.start >= len(shape) and len(shape) < len(expected):
            continue
        if part.stop > len(shape):
            return None
        if all(same[i] for i in part):
            kept.append(axis)
        elif all(shape[i] == 1 for i in part):
            dropped.extend(part)
        else:
            return None
    return tuple(kept), tuple(dropped)


def python_name(axis: Axis) -> str:
    """An identifier for an axis or a loss, for use in source text."""
    name = re.sub(r"\W", "", axis.replace("'", "_copy").replace("~", "_in_"))
    return name + "_" if keyword.iskeyword(name) else name
