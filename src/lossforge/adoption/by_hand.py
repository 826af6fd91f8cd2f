"""A gradient that was written by hand, for the same library as the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from lossforge import ir
from lossforge.adoption.reading import Reader, overlaid
from lossforge.adoption.study import Study
from lossforge.compiler import Definition
from lossforge.errors import AdoptionError
from lossforge.frontends.positional import Importer, Tensor
from lossforge.frontends.recording import Different
from lossforge.gradient import HandWritten
from lossforge.ir import Kind, Port
from lossforge.stabilize import stabilize


def by_hand(study: Study, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
    """The graph of a gradient that was written for the same library.

    Raises:
        AdoptionError: it cannot be read at the sizes at which the loss was, or is not of its argument's shape.
    """
    original = study.original.gradient(type(study.original.front)(function))  # type: ignore[call-arg]
    reader = copy.copy(study)
    reader.original = original
    places = [study.original.names.index(a) for a in original.names]
    shapes = [[s[i] for i in places] for s in study.read.shapes]
    try:
        pair = [original.record(s) for s in shapes]
        numbers = [n for n in study.numbers if n in original.numbers]
        read = reader.with_numbers(shapes, pair, numbers, []) if numbers else None
        if read is None:
            importer, result = reader.imported(overlaid(pair))
        else:
            importer, result = read.importer, read.result
    except Different as error:
        raise AdoptionError(f"{original.name}'s steps depend on the sizes of its inputs ({error})") from None
    target = definition.port(wrt)
    result = _along(reader, target, importer, result)
    axes = tuple(a for d in result.dims for a in d)
    node = ir.as_kind(result.node, Kind.FLOAT)
    if (
        len(result.dims) != len(target.order)
        or any(a not in target.order for a in axes)
        or (list(axes) != [a for a in target.order if a in axes])
    ):
        raise AdoptionError(
            f"{original.name} has the axes ({', '.join(axes)}), but {wrt!r} has ({', '.join(target.order)})"
        )
    return HandWritten(definition.value, target.node, stabilize(node)[0])


def _along(reader: Reader, target: Port, importer: Importer, result: Tensor) -> Tensor:
    """A gradient whose dimensions are those of its argument, also where an operation has made them anew."""
    if len(result.dims) != len(target.order):
        return result
    for i, axis in enumerate(target.order):
        dim = result.dims[i]
        made = [importer.origin[a] for a in dim if a in importer.origin and a != axis]
        if len(dim) == 1 and made and importer.sizes_of(dim[0]) == importer.sizes_of(axis):
            reader.table.parents[reader.table.root(made[0])] = reader.table.root(importer.origin[axis])
            importer, result = reader.imported(importer.recording)
    return result
