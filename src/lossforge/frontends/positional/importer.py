"""A recording as a graph, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lossforge import ir
from lossforge.errors import AdoptionError, LossforgeError
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.diagonals import Diagonals
from lossforge.frontends.positional.literals import LARGEST_TABLE, too_large
from lossforge.frontends.positional.values import Refused, Tensor
from lossforge.frontends.recording import Ref, Step, needed


class Importer(Diagonals):
    """One attempt to read a recording as a graph."""

    def run(self, arguments: str = "") -> Tensor:
        """Import every step.

        Raises:
            Restart: the table has learnt something.
            AdoptionError: a step cannot be imported.
        """
        for step in needed(self.recording):
            self.where = step.where
            rule = self.rules.get(step.op)
            if rule is None:
                raise AdoptionError(_refusal(step, "lossforge does not know this operation"))
            try:
                result = rule(self, step, *[self._argument(a) for a in step.args])
                results = result if isinstance(result, tuple) else (result,)
                for index, value, shapes in zip(step.outputs, results, step.shapes, strict=False):
                    self._check(value, shapes)
                    self.values[index] = value
            except Refused as reason:
                raise AdoptionError(_refusal(step, str(reason))) from None
            except AdoptionError:
                raise
            except LossforgeError as error:
                raise AdoptionError(_refusal(step, str(error))) from error
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                unknown = f"it is used in a way that is not known ({type(error).__name__}: {error})"
                raise AdoptionError(_refusal(step, unknown)) from error
        result = self.tensor(self.recording.result)
        for n in ir.topological([result.node]):
            if n.op == "table" and (size := len(n.attrs[2])) > LARGEST_TABLE:
                raise Refused(too_large(size))
        counted = {n.attrs[0] for n in ir.topological([result.node]) if n.op == "iota"}
        if any(unprimed(self.copies.get(a, a)) in self.ranges for a in counted):
            raise Refused("a range whose end is not the size of an axis")
        if any(n.op == "iota" and n.attrs[0].startswith(SELECTED) for n in ir.topological([result.node])):
            raise Refused("positions in a selection by truth values, which depend on values")
        return result

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value.index]
        if isinstance(value, list | tuple):
            return type(value)(self._argument(v) for v in value)
        return value

    def _check(self, value: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        """The shape by the axes is the shape that was recorded, in every recording."""
        if not isinstance(value, Tensor):
            return
        for i, shape in enumerate(shapes):
            found = tuple(self.extents(d)[i] for d in value.dims)
            if found != tuple(shape):
                raise Refused(f"the result has shape {tuple(shape)}, by its axes {found}")


def _refusal(step: Step, reason: str) -> str:
    place = f", in {step.where}" if step.where else ""
    return f"{step.op}{place}: {reason}"
