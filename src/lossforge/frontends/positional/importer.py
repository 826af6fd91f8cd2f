"""A recording as a graph, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lossforge import ir
from lossforge.errors import AdoptionError, LossforgeError
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.literals import LARGEST_TABLE, too_large
from lossforge.frontends.positional.matrices import Matrices
from lossforge.frontends.positional.values import Refused, Tensor
from lossforge.frontends.recording import Ref, needed
from lossforge.ir import Node


class Importer(Matrices):
    """One attempt to read a recording as a graph."""

    def run(self) -> Tensor:
        """Import every step.

        Raises:
            Restart: the table has learnt something.
            AdoptionError: a step cannot be imported.
        """
        steps = needed(self.recording)
        for number, step in enumerate(steps):
            self.at = number
            rule = self.rules.get(step.op)
            if rule is None:
                raise AdoptionError(f"{step.told}: lossforge does not know this operation; write it with others")
            try:
                result = rule(self, step, *[self._argument(a) for a in step.args])
                results = result if isinstance(result, tuple) else (result,)
                for index, value, shapes in zip(step.outputs, results, step.shapes, strict=False):
                    self._check(value, shapes)
                    self.values[index] = value
            except Refused as reason:
                raise AdoptionError(f"{step.told}: {reason}") from None
            except AdoptionError:
                raise
            except LossforgeError as error:
                raise AdoptionError(f"{step.told}: {error}") from error
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                unknown = f"it is used in a way that is not known ({type(error).__name__}: {error})"
                raise AdoptionError(f"{step.told}: {unknown}; write this step in another way") from error
        result = self.tensor(self.recording.result)
        for node in ir.topological([result.node]):
            if (problem := self._unusable(node)) is not None:
                origin = next((s for s in steps if any(self._holds(self.values.get(i), node) for i in s.outputs)), None)
                raise Refused(problem) if origin is None else AdoptionError(f"{origin.told}: {problem}")
        return result

    def _unusable(self, node: Node) -> str | None:
        """Why a node cannot stand in a graph, though it may in one that the result does not need."""
        if node.op == "table" and (size := len(node.attrs[2])) > LARGEST_TABLE:
            return too_large(size)
        if node.op == "iota" and unprimed(self.copies.get(node.attrs[0], node.attrs[0])) in self.ranges:
            return "a range whose end is not the size of an axis; use a slice of a range that is as long as a dimension"
        if node.op == "iota" and node.attrs[0].startswith(SELECTED):
            return (
                "positions in a selection by truth values, which depend on values; multiply by the mask, or use a where"
            )
        return None

    def _holds(self, value: Any, node: Node) -> bool:
        return isinstance(value, Tensor) and node in ir.topological([value.node])

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
                raise Refused(
                    f"the result has shape {tuple(shape)}, by its axes {found}; give all dimensions different sizes in the "
                    f"examples, or write this step in another way"
                )
