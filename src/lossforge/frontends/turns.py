"""Turns of a loop that may be skipped, as one recording.

A loop, ``for c in classes: if nothing(c): continue; losses.append(loss(c))``, gives the mean of as many losses as there are
turns that were not skipped. It is recorded three times: with all turns, and with every other one. Walked from their results
backwards, the first recording has terms of sums and entries of lists that the others lack, and whole numbers that are larger.
A term that is lacking is 0 where its turn is skipped, an entry is selected, and a number is counted.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossforge.frontends.recording import Recording, Ref, Step, refs
from lossforge.frontends.ways import Numbered, Unlike, choice

_SUMS: Mapping[str, float] = {"add.Tensor": 0.0, "mul.Tensor": 1.0}
"""Operations whose terms may be lacking, and what takes their place."""
_LISTS = ("stack.default", "cat.default")
_ARITHMETIC = frozenset(
    {
        "add.Tensor",
        "sub.Tensor",
        "mul.Tensor",
        "div.Tensor",
        "rsub.Scalar",
        "maximum.default",
        "add.Scalar",
        "div.Scalar",
        "mul.Scalar",
    }
)
"""Operations in which a whole number is a count."""
_SIZES = frozenset(
    {
        "view.default",
        "expand.default",
        "_unsafe_view.default",
        "slice.Tensor",
        "split.Tensor",
        "unbind.int",
        "arange.start_step",
    }
)
"""Operations in which it is a size, which follows from that of their operand."""

_SHAPES = frozenset({"unsqueeze", "squeeze", "view", "expand", "clone", "_to_copy"})
"""Operations that may be done to a value when the loop is over."""


@dataclass(frozen=True)
class Guard:
    """What decides on whether one turn is skipped: if one of these truth values is as given (of a mask: if none holds)."""

    told: tuple[tuple[Ref, bool], ...]
    odd: bool
    """Whether the turn is skipped in the first of the other recordings, or else in the second."""


def skipping(
    usual: Recording, odd: Recording, even: Recording, none: Recording | None, guards: Sequence[Guard]
) -> Recording:
    """The recording in which each turn is skipped where its guard says so.

    Args:
        usual: that of all turns.
        odd: that without every second turn.
        even: that without the others.
        none: that without any, if the function has a value then.
        guards: those of the turns, in their order.

    Raises:
        Unlike: the recordings differ in more than turns.
    """
    return _Skipping(usual, odd, even, guards).run(none)


class _Skipping:
    """Three recordings, walked from their results backwards."""

    def __init__(self, usual: Recording, odd: Recording, even: Recording, guards: Sequence[Guard]) -> None:
        self.usual, self.guards = usual, guards
        numbers: dict[Any, int] = {}
        self.ways = tuple(Numbered(r, numbers, None) for r in (usual, odd, even))
        self.results = (usual.result, odd.result, even.result)
        self.places = {o: k for k, s in enumerate(usual.steps) for o in s.outputs}
        self.times = [max(self._place(ref) for ref, _ in g.told) for g in guards]
        if sorted(set(self.times)) != self.times:
            raise Unlike("two turns are decided on at once")
        self.fresh = 1 + max([len(usual.inputs) - 1, *self.places])
        self.made: list[tuple[float, int, Step]] = []
        """New steps, and behind which of the others they are done."""
        self.known: dict[Any, Any] = {}
        self.brought: dict[Any, Any] = {("value", n): Ref(r) for r, n in self.ways[0].numbers_of.items()}
        """The values that there are, by their numbers."""
        self.told: dict[int, Ref] = {}
        self.counts: dict[tuple[int, int], Ref] = {}
        self.behind = [float(t) for t in self.times]
        """For each turn, the place behind which it is counted."""

    def run(self, none: Recording | None) -> Recording:
        """The recording of all."""
        result = self._merged(*self.results, len(self.usual.steps))
        if result == self.usual.result:
            return self.usual
        every = self._count(0, len(self.guards), None) if none is not None else None
        masks = {self.ways[0].of(ref) for g in self.guards for ref, skips in g.told if not skips}
        steps = [(float(k), -1, self.ways[0].guarded(s, masks)) for k, s in enumerate(self.usual.steps)]
        ordered = _in_order([s for _, _, s in sorted([*steps, *self.made], key=lambda e: e[:2])])
        merged = replace(self.usual, steps=tuple(ordered), result=result)
        if none is None or every is None:
            return merged
        nothing = Step("eq.Scalar", (every, 0), {}, (self.fresh,), (((),),), "", ("torch.bool",))
        merged = replace(merged, steps=(*merged.steps, nothing))
        return choice(merged, none, Ref(self.fresh), where=True, count=None)

    def _place(self, value: Any) -> int:
        return self.places.get(value.index, -1) if isinstance(value, Ref) else -1

    def _new(self, place: float, op: str, args: Any, like: Step | None, shape: Any, dtype: str, **attrs: Any) -> Ref:
        step = Step(op, args, attrs, (self.fresh,), (shape,), like.where if like else "", (dtype,))
        self.made.append((place, len(self.made), step))
        self.fresh += 1
        return Ref(step.outputs[0])

    # ------------------------------------------------------------------ values of all three recordings

    def _merged(self, u: Any, a: Any, b: Any, place: int) -> Any:
        """One value for the three, which is used at a place."""
        mine, odd, even = self.ways
        key = (mine.of(u), odd.of(a), even.of(b), place if not isinstance(u, Ref) else None)
        if key[0] == key[1] == key[2]:
            return u
        if key not in self.known:
            try:
                self.known[key] = self._merge(u, a, b, place)
            except Unlike as reason:
                self.known[key] = reason
        found = self.known[key]
        if isinstance(found, Unlike):
            raise found
        return found

    def _merge(self, u: Any, a: Any, b: Any, place: int) -> Any:
        if not isinstance(u, Ref):
            raise Unlike(f"{u!r} in one way, {a!r} or {b!r} in others")
        x, y, z = (way.step(v) for way, v in zip(self.ways, (u, a, b), strict=True))
        if x is None:
            raise Unlike("an argument in one way, another value in others")
        if x.op in _SUMS:
            terms = [self._terms(way, v, x.op) for way, v in zip(self.ways, (u, a, b), strict=True)]
            if len(terms[0]) > min(len(terms[1]), len(terms[2])):
                return self._sum(u, x.op, terms)
        at = self._place(u)
        if x.op == "div.Tensor" and type(x.args[1]) is int and (found := self._divided(x, a, b, at)) is not None:
            return found
        if y is not None and z is not None and x.op == y.op == z.op and len(x.args) == len(y.args) == len(z.args):
            if x.op in _LISTS and len(x.args[0]) > min(len(y.args[0]), len(z.args[0])):
                return self._list(x, y, z, at)
            try:
                return self._remade(x, self._operands(x, y, z, at), at)
            except Unlike:
                found = self._bypassed(u, a, b, at) or self._instead(u, a, b, at)
                if found is None:
                    raise
                return found
        found = self._bypassed(u, a, b, at) or self._instead(u, a, b, at)
        if found is None:
            raise Unlike(f"{x.op} in one way, {y.op if y else a!r} or {z.op if z else b!r} in others")
        return found

    def _remade(self, x: Step, args: Any, at: int, **attrs: Any) -> Ref:
        if len(x.outputs) > 1:
            raise Unlike(f"{x.op} of turns")
        return self._new(at, x.op, args, x, x.shapes[0], x.dtypes[0] if x.dtypes else "", **{**x.attrs, **attrs})

    def _operands(self, x: Step, y: Step, z: Step, at: int) -> tuple[Any, ...]:
        mine, odd, even = self.ways
        if not mine.of(x.attrs) == odd.of(y.attrs) == even.of(z.attrs):
            raise Unlike(f"{x.op} with other options")
        found: list[Any] = []
        for p, q, r in zip(x.args, y.args, z.args, strict=True):
            if isinstance(p, list | tuple) and any(isinstance(v, Ref) for v in p):
                if not len(p) == len(q) == len(r):
                    raise Unlike(f"{x.op} of another number of values")
                found.append(type(p)(self._merged(*v, at) for v in zip(p, q, r, strict=True)))
            elif isinstance(p, Ref) or mine.of(p) == odd.of(q) == even.of(r):
                found.append(self._merged(p, q, r, at))
            elif x.op in _SIZES:
                found.append(p)
            elif x.op in _ARITHMETIC and all(type(v) in (int, float) and float(v).is_integer() for v in (p, q, r)):
                found.append(self._counted(int(p), int(q), int(r), at))
            else:
                raise Unlike(f"{x.op} with {p!r} in one way, {q!r} or {r!r} in others")
        return tuple(found)

    # ------------------------------------------------------------------ sums, lists, counts

    def _terms(self, way: Numbered, value: Any, op: str) -> list[Any]:
        """What a value is the sum of."""
        found: list[Any] = []
        pending = [value]
        while pending:
            v = pending.pop()
            step = way.step(v)
            if step is not None and step.op == op and not step.attrs:
                pending += reversed(step.args)
            elif isinstance(v, Ref) or v != _SUMS[op]:
                found.append(v)
        return found

    def _missing(self, of: Sequence[Sequence[Any]]) -> list[int | None]:
        """For each of the first values, the turn in which it is made if one of the others lacks it."""
        mine, odd, even = self.ways
        numbers = [[w.of(v) for v in values] for w, values in zip(self.ways, of, strict=True)]
        at = [0, 0]
        result: list[int | None] = []
        for value, number in zip(of[0], numbers[0], strict=True):
            lacking = []
            for k in (0, 1):
                here = at[k] < len(numbers[k + 1]) and numbers[k + 1][at[k]] == number
                at[k] += here
                lacking.append(not here)
            result.append(self._turn(value, lacking[0]) if any(lacking) else None)
            if all(lacking):
                raise Unlike("a value is lacking in both")
        if at != [len(n) for n in numbers[1:]]:
            raise Unlike("there are values that only some turns make")
        return result

    def _turn(self, value: Any, odd: bool) -> int:
        """The turn in which a value was made."""
        step = self.ways[0].step(value)
        while step is not None and step.op.partition(".")[0] in _SHAPES and isinstance(step.args[0], Ref):
            value = step.args[0]
            step = self.ways[0].step(value)
        place = self._place(value)
        k = bisect.bisect_left(self.times, place) - 1
        for turn in (k, k + 1):
            if 0 <= turn < len(self.guards) and self.guards[turn].odd == odd:
                return turn
        raise Unlike("it is not known which turn a value is of")

    def _sum(self, u: Any, op: str, terms: Sequence[Sequence[Any]]) -> Any:
        turns = self._missing(terms)
        gated: dict[int, Any] = {}
        for value, turn in zip(terms[0], turns, strict=True):
            if turn is None:
                continue
            if not isinstance(value, Ref):
                raise Unlike("a number is added in some turns")
            gated[value.index] = self._gated(value, turn, _SUMS[op])

        def rebuilt(value: Any) -> Any:
            step = self.ways[0].step(value)
            if step is not None and step.op == op and not step.attrs:
                args = tuple(rebuilt(v) for v in step.args)
                return value if args == step.args else self._remade(step, args, self._place(value))
            return gated.get(value.index, value) if isinstance(value, Ref) else value

        return rebuilt(u)

    def _gated(self, value: Ref, turn: int, otherwise: Any) -> Ref:
        """A value, or another one where a turn is skipped."""
        x = self.ways[0].step(value)
        assert x is not None
        place = max(self._place(value), self.times[turn])
        self.behind[turn] = max(self.behind[turn], place)
        shape = x.shapes[x.outputs.index(value.index)]
        dtype = x.dtypes[x.outputs.index(value.index)] if x.dtypes else ""
        return self._new(place, "where.self", (self._skipped(turn, place), otherwise, value), x, shape, dtype)

    def _list(self, x: Step, y: Step, z: Step, at: int) -> Ref:
        """A selection of what all turns gave."""
        mine, odd, even = self.ways
        given = x.args[0]
        shapes = [mine.shape(v) for v in given]
        rank = len(x.shapes[0][0])
        dim = int(x.args[1]) % rank if len(x.args) > 1 else 0
        if x.op == "cat.default" and any(s[dim] != 1 for s in shapes):
            raise Unlike("turns give several entries of a concatenation")
        turns = self._missing([x.args[0], y.args[0], z.args[0]])
        if all(t is None for t in turns):
            raise Unlike("lists")
        kept = [self._kept(t, at) if t is not None else self._always(at) for t in turns]
        count = len(given)
        mask = self._new(at, "stack.default", (tuple(kept),), x, ((count,),), "torch.bool")
        whole = self._remade(x, x.args, at)
        where = self._new(at, "position.default", (mask, whole, dim, count, 0), x, ((count,),), "torch.int64")
        return self._new(at, "index.Tensor", (whole, (*(None,) * dim, where)), x, x.shapes[0], x.dtypes[0])

    def _divided(self, x: Step, a: Any, b: Any, at: int) -> Ref | None:
        """A quotient by a count, which may be left out where it is 1."""
        for whole in itertools.product((False, True), repeat=2):
            given = []
            for way, value, undivided in zip(self.ways[1:], (a, b), whole, strict=True):
                step = way.step(value)
                if undivided:
                    given.append((value, 1))
                elif step is not None and step.op == x.op and type(step.args[1]) is int:
                    given.append(step.args)
            if len(given) < 2:
                continue
            try:
                (p, m), (q, n) = given
                counted = x.args[1] if x.args[1] == m == n else self._counted(x.args[1], m, n, at)
                return self._remade(x, (self._merged(x.args[0], p, q, at), counted), at)
            except Unlike:
                continue
        return None

    def _counted(self, u: int, a: int, b: int, at: int) -> Ref:
        """A whole number that counts turns, the last ones before it is used."""
        turns = 2 * u - a - b
        last = bisect.bisect_left(self.times, at)
        first = last - turns
        odd = sum(g.odd for g in self.guards[max(first, 0) : last])
        if turns < 1 or first < 0 or odd != u - a or turns - odd != u - b:
            raise Unlike(f"a number that is {u}, {a} or {b}")
        count = self._count(first, last, at)
        return count if u == turns else self._new(at, "add.Tensor", (count, u - turns), None, ((),), "torch.float32")

    def _count(self, first: int, last: int, at: int | None) -> Ref:
        """How many of some turns are not skipped; at least 1 where something is divided by it."""
        if (first, last) not in self.counts:
            total: Any = 0.0
            for turn in range(first, last):
                place = self.behind[turn] + 0.25
                one = self._new(
                    place, "where.self", (self._skipped(turn, place), 0.0, 1.0), None, ((),), "torch.float32"
                )
                total = self._new(place, "add.Tensor", (one, total), None, ((),), "torch.float32")
            self.counts[first, last] = total
        total = self.counts[first, last]
        return total if at is None else self._new(at - 0.5, "clamp.default", (total, 1), None, ((),), "torch.float32")

    def _skipped(self, turn: int, place: float) -> Ref:
        """Whether a turn is skipped."""
        if turn not in self.told:
            found: Ref | None = None
            here = self.times[turn] + 0.1
            for ref, skips in self.guards[turn].told:
                truth = self._new(here, "any.default", (ref,), None, ((),), "torch.bool")
                if not skips:
                    truth = self._new(here, "logical_not.default", (truth,), None, ((),), "torch.bool")
                found = (
                    truth
                    if found is None
                    else self._new(here, "logical_or.default", (found, truth), None, ((),), "torch.bool")
                )
            assert found is not None
            self.told[turn] = found
        return self.told[turn]

    def _kept(self, turn: int, at: int) -> Ref:
        place = self.behind[turn] + 0.2
        return self._new(place, "logical_not.default", (self._skipped(turn, place),), None, ((),), "torch.bool")

    def _always(self, at: int) -> Ref:
        return self._new(at, "full.default", ((), True), None, ((),), "torch.bool")

    # ------------------------------------------------------------------ what a turn makes of a value

    def _bypassed(self, u: Any, a: Any, b: Any, at: int) -> Any:
        """A value that a turn makes of another one, as it writes into an array: skipped, it is that one."""
        mine, odd, even = self.ways
        x = mine.step(u)
        assert x is not None
        turn = bisect.bisect_left(self.times, at) - 1
        if turn < 0 or len(x.outputs) > 1:
            return None
        y, z = odd.step(a), even.step(b)
        skips = self.guards[turn].odd
        there, way = (z, even) if skips else (y, odd)
        if there is None or there.op != x.op or len(there.args) != len(x.args):
            return None
        apart = [i for i, (p, q) in enumerate(zip(x.args, there.args, strict=True)) if mine.of(p) != way.of(q)]
        before = [
            i for i, p in enumerate(x.args)
            if isinstance(p, Ref) and mine.shape(p) == x.shapes[0][0] and not set(apart) - {i}
        ]  # fmt: skip
        for i in before:
            try:
                p = self._merged(x.args[i], *((a, there.args[i]) if skips else (there.args[i], b)), at)
            except Unlike:
                continue
            made = self._remade(x, (*x.args[:i], p, *x.args[i + 1 :]), at)
            return self._new(at, "where.self", (self._skipped(turn, at), p, made), x, x.shapes[0], x.dtypes[0])
        return None

    def _instead(self, u: Ref, a: Any, b: Any, at: int) -> Ref | None:
        """A value in whose place a turn that is skipped has another one; itself where that is worked out from no entries."""
        mine, odd, even = self.ways
        skips = even.of(b) == mine.of(u)
        if not skips and odd.of(a) != mine.of(u):
            return None
        way, value = (odd, a) if skips else (even, b)
        if (way.shape(value) if isinstance(value, Ref) else ()) != mine.shape(u):
            return None
        turn = self._turn(u, skips)
        place = max(at, self.times[turn])
        before = len(self.made)
        try:
            other = self._brought(way, value, place)
        except _Nothing:
            del self.made[before:]
            return u
        x = mine.step(u)
        shape, dtype = ((mine.shape(u),), x.dtypes[0] if x and x.dtypes else "")
        return self._new(place, "where.self", (self._skipped(turn, place), other, u), x, shape, dtype)

    def _brought(self, way: Numbered, value: Any, place: float) -> Any:
        """A value of another recording in this one."""
        if isinstance(value, list | tuple):
            return type(value)(self._brought(way, v, place) for v in value)
        if not isinstance(value, Ref):
            return value
        number = way.of(value)
        if number not in self.brought:
            step = way.step(value)
            if step is None or len(step.outputs) > 1:
                raise Unlike("something else is done in some turns")
            if any(0 in shape for shape in step.shapes[0]):
                raise _Nothing
            attrs = {k: self._brought(way, v, place) for k, v in step.attrs.items()}
            args = self._brought(way, step.args, place)
            dtype = step.dtypes[0] if step.dtypes else ""
            self.brought[number] = self._new(place, step.op, args, step, step.shapes[0], dtype, **attrs)
        return self.brought[number]


def _in_order(steps: Sequence[Step]) -> list[Step]:
    """Steps in their order, but for those that others need before."""
    by_output = {o: s for s in steps for o in s.outputs}
    done: dict[int, Step] = {}
    pending = list(reversed(steps))
    while pending:
        step = pending[-1]
        before = [by_output[r.index] for r in refs((step.args, step.attrs)) if r.index in by_output]
        missing = [s for s in before if s.outputs[0] not in done]
        if missing:
            pending += missing
        else:
            done.setdefault(step.outputs[0], pending.pop())
    return list(done.values())


class _Nothing(Exception):
    """Internal: a value is worked out from an array of no entries."""
