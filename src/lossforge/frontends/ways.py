"""Two ways that a function may take, as one recording.

A guard, ``if len(pairs) == 0: return zero``, takes another way for other values. Each way is recorded by itself. Walked
from their results backwards, the two are alike up to some value, and that value is a choice between both.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lossforge.frontends.recording import Recording, Ref, Step, needed, refs

_SUMS = frozenset({"sum.default", "sum.dim_IntList"})
"""What is zero of no entries, and not undefined as a mean is."""


class Unlike(Exception):
    """Internal: two ways end in values that cannot be a choice."""


def choice(
    usual: Recording, other: Recording, condition: Ref, *, where: bool, count: int | None, few: int = 0
) -> Recording:
    """One recording that does as `other` where `condition`, of the usual one, is `where`, and else as usual.

    `count` is the number of entries of a selection by `condition`, of which there are `few` in `other`, and there may be fewer. It is
    the usual recording itself where both do the same, or where the other takes more than sums of arrays of no entries.

    Raises:
        Unlike: the results of both ways have different shapes, other than that of one entry.
    """
    other = _of_one_entry(other, usual)
    numbers: dict[Any, int] = {}
    mine, theirs = Numbered(usual, numbers, count), Numbered(other, numbers, count if few == 0 else few)
    path: list[tuple[Step, int]] = []
    a, b = usual.result, other.result
    found: tuple[Ref, Any, int] | None = None  # where both ways have one shape, as late as can be
    while mine.of(a) != theirs.of(b):
        x, y = mine.step(a), theirs.step(b)
        if x is not None and y is not None and x.shapes[0] == y.shapes[0]:
            found = a, b, len(path)
        if x is None or y is None or x.op != y.op or len(x.args) != len(y.args) or len(x.outputs) > 1:
            break
        apart = [i for i, (p, q) in enumerate(zip(x.args, y.args, strict=True)) if mine.of(p) != theirs.of(q)]
        if len(apart) != 1 or mine.of(x.attrs) != theirs.of(y.attrs) or not isinstance(x.args[apart[0]], Ref):
            break
        if not isinstance(y.args[apart[0]], Ref):
            break
        path.append((x, apart[0]))
        a, b = x.args[apart[0]], y.args[apart[0]]
    else:
        return usual
    if found is None:
        raise Unlike
    a, b, depth = found
    path, step = path[:depth], mine.steps[a.index]
    steps = [s if count is None else mine.guarded(s, {mine.of(condition)}) for s in usual.steps]
    known = {("value", number): Ref(r) for r, number in mine.numbers_of.items()}
    fresh = 1 + max([len(usual.inputs) - 1, *(o for s in steps for o in s.outputs)])
    moved: dict[int, Ref] = {}
    nothing: set[int] = set()
    """Arrays of the other way that have no entries."""

    def bring(value: Any) -> Any:
        if isinstance(value, Ref):
            return moved.get(value.index) or known[theirs.of(value)]
        if isinstance(value, list | tuple):
            return type(value)(bring(v) for v in value)
        return {k: bring(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    for s in needed(replace(other, result=b)):
        if all(theirs.of(Ref(o)) in known for o in s.outputs):
            continue
        if few == 0 and any(0 in shape for of in s.shapes for shape in of):
            nothing |= set(s.outputs)
            continue
        if not nothing.isdisjoint(r.index for r in refs((s.args, s.attrs))):
            if s.op not in _SUMS or s.shapes != (((),),):
                return usual
            s = replace(s, op="full.default", args=((), 0.0), attrs={})
        if few and count is not None and theirs.selected(s, condition, mine):
            s = _enlarged(s, few, count)
        outputs = tuple(range(fresh, fresh + len(s.outputs)))
        fresh += len(outputs)
        steps.append(replace(s, args=bring(s.args), attrs=bring(s.attrs), outputs=outputs))
        moved |= {o: Ref(n) for o, n in zip(s.outputs, outputs, strict=True)}
    told = Step("any.default", (condition,), {}, (fresh,), (((),),), step.where, ("torch.bool",))
    if few:
        total = Step("sum.default", (condition,), {}, (fresh,), (((),),), step.where, ("torch.int64",))
        told = Step("gt.Scalar", (Ref(fresh), few), {}, (fresh + 1,), (((),),), step.where, ("torch.bool",))
        steps.append(total)
        fresh += 1
    chosen = (bring(b), a) if where else (a, bring(b))
    steps += [told, replace(step, op="where.self", args=(Ref(fresh), *chosen), attrs={}, outputs=(fresh + 1,))]
    fresh += 2
    for s, i in reversed(path):
        steps.append(replace(s, args=(*s.args[:i], Ref(fresh - 1), *s.args[i + 1 :]), outputs=(fresh,)))
        fresh += 1
    return replace(usual, steps=tuple(steps), result=Ref(fresh - 1))


def _of_one_entry(other: Recording, usual: Recording) -> Recording:
    """Another way whose one number is in an array like that of the usual one: ``new_zeros(1)`` for a sum."""
    shapes = [
        s.shapes[s.outputs.index(way.result.index)][0]
        for way in (other, usual)
        for s in way.steps
        if way.result.index in s.outputs
    ]
    if len(shapes) < 2 or shapes[0] == shapes[1] or any(n != 1 for shape in shapes for n in shape):
        return other
    fresh = 1 + max(o for s in other.steps for o in s.outputs)
    view = Step("view.default", (other.result, shapes[1]), {}, (fresh,), ((shapes[1],),), other.steps[-1].where)
    return replace(other, steps=(*other.steps, view), result=Ref(fresh))


def _enlarged(step: Step, few: int, count: int) -> Step:
    """A step that works with few selected entries as one that works with the usual number of them."""

    def enlarged(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(enlarged, value))
        return count if type(value) is int and value == few else value

    vectors = all(len(shape) < 2 for of in step.shapes for shape in of)
    if few == 1 and not vectors:
        raise Unlike  # it is not known which dimension is that of the selection
    args = tuple(enlarged(a) if isinstance(a, list | tuple) else a for a in step.args)
    if step.op == "position.default" and args[3] == few:  # not a selection from what was selected
        args = (*args[:3], count, *args[4:])
    return replace(step, args=args, shapes=tuple(tuple(map(enlarged, of)) for of in step.shapes))


class Numbered:
    """The values of a recording numbered by how they are worked out: equal ones have one number, in both recordings."""

    def __init__(self, recording: Recording, numbers: dict[Any, int], count: int | None) -> None:
        self.numbers, self.count = numbers, None if count == 1 else count  # 1 is most often another number
        self.numbers_of = {i: self._number(("input", i)) for i in range(len(recording.inputs))}
        self.steps: dict[int, Step] = {}
        for step in recording.steps:
            attrs = {k: v for k, v in step.attrs.items() if k != "guarded"}
            args = step.args
            if step.op == "position.default" and args[3] == count:
                args = (*args[:3], None, *args[4:])
            key = (step.op, self.of(args), self.of(attrs), step.dtypes)
            for place, output in enumerate(step.outputs):
                self.steps[output] = step
                self.numbers_of[output] = self._number((key, place))

    def _number(self, key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def step(self, value: Any) -> Step | None:
        """The step that makes a value."""
        return self.steps.get(value.index) if isinstance(value, Ref) else None

    def guarded(self, step: Step, masks: Container[Any]) -> Step:
        """The positions of selections whose number is not used where it is 0: no division by it may spoil a gradient."""
        found = step.op == "position.default" and self.of(step.args[0]) in masks
        return replace(step, attrs={"guarded": True}) if found else step

    def shape(self, value: Ref) -> tuple[int, ...]:
        """That of a value that a step makes."""
        step = self.steps.get(value.index)
        return () if step is None else step.shapes[step.outputs.index(value.index)][0]

    def selected(self, step: Step, mask: Ref, of: Numbered) -> bool:
        """Whether a step works with the entries of a selection by a mask of another recording."""
        pending, seen = [step], set[int]()
        while pending:
            s = pending.pop()
            if s.outputs[0] in seen:
                continue
            seen.add(s.outputs[0])
            if s.op == "position.default" and self.of(s.args[0]) == of.of(mask):
                return True
            pending += [self.steps[r.index] for r in refs((s.args, s.attrs)) if r.index in self.steps]
        return False

    def of(self, value: Any) -> Any:
        """The number of a value; anything else by its content."""
        if isinstance(value, Ref):
            return ("value", self.numbers_of[value.index])
        if isinstance(value, list | tuple):
            return tuple(self.of(v) for v in value)
        if isinstance(value, Mapping):
            return tuple((k, self.of(v)) for k, v in sorted(value.items()))
        if isinstance(value, np.ndarray):
            return (value.shape, str(value.dtype), value.tobytes())
        return (type(value).__name__, repr(0 if type(value) is int and value == self.count else value))


def alike(first: Recording, second: Recording) -> bool:
    """Whether two recordings do the same."""
    numbers: dict[Any, int] = {}
    return Numbered(first, numbers, None).of(first.result) == Numbered(second, numbers, None).of(second.result)
