"""Reductions, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.nodes import renamed
from lossforge.frontends.positional.shapes import Shapes
from lossforge.frontends.positional.values import Refused, Tensor
from lossforge.ir import Axis, Kind, Node


class Reductions(Shapes):
    """Reductions over dimensions."""

    def reduce(self, op: str, x: Any, dims: Any = None, keepdims: bool = False) -> Tensor:
        """A reduction over dimensions."""
        t = self.tensor(x)
        gone = self.dims(t, dims)
        if op in ("argmax", "argmin") and sum(len(t.dims[d]) for d in gone) > 1:
            if len(gone) > 1:
                raise Refused(f"{op} over several dimensions; flatten them first")
            t = self.single(t, gone[0])
        t = self._selected(op, t, gone)
        atoms = tuple(a for d in gone for a in t.dims[d])
        present = [b for a in atoms for b in self.held(a) if b in t.node.axes]
        absent = tuple(a for a in atoms if not t.node.axes & set(self.held(a)))
        node = t.node
        if op == "mean":
            node = ir.as_kind(node, Kind.FLOAT)
            counted = tuple(a for a in atoms if a not in absent)
            node = ir.total(node, present) / self.length(counted) if present else node
        elif op == "any" or op == "all":
            node = ir.as_kind(ir.as_kind(node, Kind.BOOL), Kind.FLOAT)
            node = ir.reduction("max" if op == "any" else "min", node, present) if present else node
            node = ir.as_kind(node, Kind.BOOL)
        else:
            kind = node.kind
            node = ir.reduction(op, node, present) if present else ir.as_kind(node, Kind.FLOAT)
            if op in ("max", "min") and kind is Kind.INDEX:
                node = ir.as_kind(node, Kind.INDEX)
            if absent and op == "sum":
                node = node * self.length(absent)
            elif absent and op == "logsumexp":
                node = node + ir.elementwise("log", self.length(absent))
            elif absent and op == "prod":
                node = ir.elementwise("pow", node, self.length(absent))
            elif absent and op in ("argmax", "argmin"):
                node = ir.constant(0, Kind.INDEX)
        kept = [() if i in gone else d for i, d in enumerate(t.dims) if keepdims or i not in gone]
        return Tensor(self._released(node, present), tuple(kept))

    def _selected(self, op: str, t: Tensor, gone: Sequence[int]) -> Tensor:
        """`t` with the entries that are not selected replaced by what a reduction passes over."""
        axes = [a for d in gone for a in t.dims[d] if a.startswith(SELECTED)]
        if not axes:
            return t
        neutral = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf, "logsumexp": -math.inf}
        node = t.node
        if op in ("any", "all"):
            node, empty = ir.as_kind(node, Kind.BOOL), ir.constant(op == "all")
        elif op in neutral:
            node, empty = ir.as_kind(node, Kind.FLOAT), ir.constant(neutral[op])
        else:
            raise Refused(
                f"{op} of a selection by truth values, in which positions depend on values; fill what is not selected with a where"
            )
        for axis in axes:
            if op in ("sum", "mean") and not node.axes & set(self.held(axis)):
                continue  # constant: the count will do
            node = ir.where(self.mask_of(axis), node, empty)
        return Tensor(node, t.dims)

    def _released(self, node: Node, bound: Sequence[Axis]) -> Node:
        """A reduction over copies of axes as one over the axes, where nothing else goes by their names."""
        copies = {a: self.copies[unprimed(a)] for a in bound if unprimed(a) in self.copies}
        if not copies or node.op not in ir.REDUCTIONS | {"div"}:
            return node
        body = node if node.op != "div" else node.args[0]
        if body.op not in ir.REDUCTIONS:
            return node
        inner: Node | None = body.args[0]
        axes = list(body.attrs[0])
        for copy, axis in copies.items():
            if inner is not None and copy in axes and axis not in axes:
                inner = renamed(inner, copy, axis, {})
                axes[axes.index(copy)] = axis
        if inner is None or not set(axes) <= inner.axes:
            return node
        reduced = ir.reduction(body.op, inner, axes)
        return reduced if node.op != "div" else reduced / node.args[1]

    def var(self, x: Any, dims: Any = None, correction: float = 1, keepdims: bool = False) -> Tensor:
        """The variance; `correction` is taken from the count."""
        t = self.tensor(x)
        gone = self.dims(t, dims)
        centred = self.elementwise("sub", t, self.reduce("mean", t, gone, keepdims=True))
        total = self.reduce("sum", self.elementwise("mul", centred, centred), gone, keepdims)
        count = self.length(tuple(a for d in gone for a in t.dims[d]))
        return Tensor(total.node / (count - float(correction) if correction else count), total.dims)

    def softmax(self, x: Any, dim: int, log: bool = False) -> Tensor:
        """Softmax along a dimension, or its logarithm."""
        t = self.tensor(x)
        shifted = self.elementwise("sub", t, self.reduce("logsumexp", t, [dim], keepdims=True))
        return shifted if log else self.elementwise("exp", shifted)

    def einsum(self, spec: str, *operands: Any) -> Tensor:
        """A sum of products, in NumPy's notation without dots."""
        left, _, right = spec.replace(" ", "").partition("->")
        parts = left.split(",")
        letters = list(dict.fromkeys([*right, *left.replace(",", "")]))
        product: Tensor | None = None
        for part, operand in zip(parts, operands, strict=True):
            t = self.tensor(operand)
            if len(set(part)) < len(part):
                raise Refused(f"einsum {spec!r} with a letter twice in one operand; take its diagonal before")
            dims = tuple(t.dims[part.index(c)] if c in part else () for c in letters)
            spread = Tensor(t.node, dims)
            product = spread if product is None else self.elementwise("mul", product, spread)
        assert product is not None
        gone = [i for i, c in enumerate(letters) if c not in right]
        return self.reduce("sum", product, gone) if gone else product
