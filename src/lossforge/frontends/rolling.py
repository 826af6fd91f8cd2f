"""Loops that a recording holds written out, rolled up again.

A loop over a batch or over classes has as many turns as its axis has entries, so that recordings at two sizes differ in
length. Here a block of steps that is repeated as often as a dimension is long becomes one turn (`loops`). The turns may
differ by their number, by what they take out of earlier results, and by what they have added up so far; a loop whose
turns follow from each other in another way stays as it is.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from lossforge.frontends.recording import Recording, Ref, Step, compact, needed

_Key = tuple[int, int]
"""A result within a turn: the number of its step, and which of the step's results."""

TOTALS: Mapping[str, str] = {
    **dict.fromkeys(("AddV2", "Add", "add.Tensor", "add"), "sum"),
    **dict.fromkeys(("Mul", "mul.Tensor", "mul", "multiply"), "prod"),
    **dict.fromkeys(("Maximum", "maximum.default", "max", "maximum"), "max"),
    **dict.fromkeys(("Minimum", "minimum.default", "min", "minimum"), "min"), "put": "put",
}  # fmt: skip
"""Operations by which a loop may collect, and what they come to after all turns."""

_LESS: Mapping[str, str] = dict.fromkeys(("Sub", "sub.Tensor", "sub", "subtract"), "sum")
"""Operations by which a loop may collect into its first operand."""

_UNPACKED: Mapping[str, Callable[[Step], int]] = {
    "Unpack": lambda step: int(step.attrs.get("axis") or 0),
    "unbind.int": lambda step: int(step.args[1]) if len(step.args) > 1 else 0,
}
"""Operations that give the entries along a dimension, and the dimension."""

_PACKED: Mapping[str, Callable[[Step], tuple[Sequence[Any], int]]] = {
    "Pack": lambda step: (step.args, int(step.attrs.get("axis") or 0)),
    "ConcatV2": lambda step: (step.args[:-1], int(step.args[-1])),
    "stack.default": lambda step: (step.args[0], int(step.args[1]) if len(step.args) > 1 else 0),
    "cat.default": lambda step: (step.args[0], int(step.args[1]) if len(step.args) > 1 else 0),
    "stacked": lambda step: (step.args, 0),
    "concatenate": lambda step: (step.args, int(step.attrs["dimension" if "dimension" in step.attrs else "axis"])),
    "AddN": lambda step: (step.args, 0),
}
"""Operations that collect results, with what they collect and the dimension."""


def rolled(recording: Recording) -> Recording:
    """The recording with its loops over dimensions rolled up, from the innermost outwards."""
    while True:
        found = _Roll(_begun(recording)).run()
        if found is None or len(found.steps) >= len(recording.steps):
            return recording
        recording = found


def _begun(recording: Recording) -> Recording:
    """The recording with a 0 before sums that begin with what a first turn gave, as if that were added to it."""
    makers = {k: (at, s) for at, s in enumerate(recording.steps) for k in s.outputs}
    counts = {n for shapes in recording.inputs for n in shapes[0]}
    fresh = itertools.count(max([len(recording.inputs), *(k + 1 for k in makers)]))
    behind: dict[int, list[Step]] = {}
    other: dict[int, Step] = {}
    chains: dict[int, tuple[int, int]] = {}
    """For each sum, the step at which it begins, and how many terms there are."""
    for at, step in enumerate(recording.steps):
        if TOTALS.get(step.op) != "sum" or len(step.args) != 2 or not isinstance(step.args[0], Ref) or step.attrs:
            continue
        first, terms = chains.pop(step.args[0].index, (at, 1))
        chains[step.outputs[0]] = first, terms + 1
    for first, terms in chains.values():
        step = recording.steps[first]
        source = makers.get(step.args[0].index)
        if terms in counts and source is not None and source[1].shapes[0] == step.shapes[0]:
            begun = replace(step, args=(step.args[0], 0), outputs=(next(fresh),))
            behind.setdefault(source[0], []).append(begun)
            other[first] = replace(step, args=(Ref(begun.outputs[0]), *step.args[1:]))
    steps = [s for at, step in enumerate(recording.steps) for s in (other.get(at, step), *behind.get(at, ()))]
    return replace(recording, steps=tuple(steps)) if other else recording


class _Unlike(Exception):
    """Internal: the turns differ in more than a loop's turns may."""


@dataclass(frozen=True)
class _Within:
    """A result of the turn itself, or of the turn before."""

    key: _Key


@dataclass(frozen=True)
class _Carried:
    """What the turn before has handed on; at first `start`."""

    key: _Key
    start: Any


@dataclass(frozen=True)
class _Entry:
    """The entry of a dimension that belongs to the turn."""

    source: Any
    dim: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """A whole number, or an array of them, that grows with the turns."""

    first: Any
    growth: Any


_Operands: TypeAlias = tuple[Step, Any, Mapping[str, Any]]
_MOST_COMPARED = 20_000
"""Steps of turns, in search of all loops of a recording: some two seconds."""
_MOST_FAILURES = 400
_LEAVES = (Ref, _Within, _Carried, _Entry, _Place)


@dataclass(frozen=True)
class _Results:
    """The results of a block of steps."""

    places: Mapping[int, _Key]
    """For the results of all steps: the step, and which of its results."""
    first: int
    """The step at which the block begins."""
    length: int
    """How many steps a turn has."""
    turns: int

    def get(self, index: int) -> tuple[int, _Key] | None:
        """The turn that gives it, and which result of the turn it is; None for one of no turn."""
        step, which = self.places.get(index, (-1, 0))
        turn, at = divmod(step - self.first, self.length)
        return (turn, (at, which)) if 0 <= turn < self.turns else None


@dataclass
class _Loop:
    """A loop that was rolled up."""

    turns: int
    turn: Ref
    results: dict[_Key, Ref]
    totals: dict[_Key, Ref] = field(default_factory=dict)
    partial: set[_Key] = field(default_factory=set)
    """Results of a turn that hold what was collected before, too."""


class _Roll:
    """One pass over a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.steps = needed(recording)
        self.failures = 0
        """How many blocks in a row were no loop."""
        self.periods: dict[int, np.ndarray] = {}
        """For a distance, how many steps from each on are like those as far behind them."""
        sizes = {n for shapes in recording.inputs for n in shapes[0]}
        self.counts = sorted({m for n in sizes for m in (n, n - 1) if m > 1}, reverse=True)
        self.drawn = {n for s in self.steps if s.op == "position.default" for n in s.shapes[0][0]}
        """The numbers of entries of selections, of which each turn has its own."""
        self.makers = {k: s for s in self.steps for k in s.outputs}
        self.places = {k: (at, which) for at, s in enumerate(self.steps) for which, k in enumerate(s.outputs)}
        self.fresh = itertools.count(max([len(recording.inputs), *(k + 1 for k in self.makers)]))
        self.compared = 0
        """Steps that were laid over those of other turns so far."""
        self.written: dict[int, tuple[_Loop, int, _Key]] = {}
        """For the results of turns that are written out: the loop, the turn, and which result."""
        self.made: list[Step] = []

    def run(self) -> Recording | None:
        """The recording with loops rolled up; None if there is none."""
        known: dict[Any, int] = {}
        signs = [known.setdefault((s.op, len(s.args), self._extents(s)), len(known)) for s in self.steps]
        places: dict[int, list[int]] = {}
        for i, sign in enumerate(signs):
            places.setdefault(sign, []).append(i)
        at, found = 0, np.array(signs)
        while at < len(self.steps):
            at = self._loop(at, found, places[signs[at]]) or self._plain(at)
        if not self.written:
            return None
        try:
            result = self._value(self.recording.result)
        except _Unlike:
            return None
        return compact(replace(self.recording, steps=tuple(self.made), result=result))

    def _extents(self, step: Step) -> Any:
        """The shapes of a step's results, but for numbers that are drawn, or depend on values."""
        return tuple(
            tuple(n if type(n) is int and n not in self.drawn else -1 for n in shape)
            for of in step.shapes
            for shape in of
        )

    def _plain(self, at: int) -> int:
        self.made.append(self._collected(self.steps[at]))
        return at + 1

    # ------------------------------------------------------------------ one loop

    def _loop(self, at: int, signs: np.ndarray, places: Sequence[int]) -> int | None:
        """Roll up a loop that begins here; where it ends."""
        behind = bisect.bisect_right(places, at)
        for count in self.counts:
            for place in itertools.islice(places, behind, None):
                length = place - at
                end = at + count * length
                if end > len(signs):
                    break
                if self._alike_for(length, signs)[at] < (count - 1) * length:
                    continue
                if self.failures > _MOST_FAILURES or self.compared > _MOST_COMPARED:
                    return None
                turns = [self.steps[at + k * length : at + (k + 1) * length] for k in range(count)]
                try:
                    self._roll(turns, _Results(self.places, at, length, count))
                except _Unlike:
                    self.failures += 1
                    continue
                self.failures = 0
                return end
        return None

    def _alike_for(self, length: int, signs: np.ndarray) -> np.ndarray:
        if length not in self.periods:
            here = np.arange(len(signs) - length)
            differs = np.where(signs[length:] != signs[:-length], here, len(here))
            self.periods[length] = np.minimum.accumulate(differs[::-1])[::-1] - here
        return self.periods[length]

    def _roll(self, turns: Sequence[Sequence[Step]], keys: _Results) -> None:
        body, leaves = self._turn(turns, keys)
        totals = {leaf.key: leaf.start for of in leaves for leaf in of if isinstance(leaf, _Carried)}
        chains = {key: _chain(key, body, leaves) for key in totals}
        if any(op == "put" and not self._is_empty(totals[key]) for key, (op, _) in chains.items()):
            raise _Unlike
        self._write(turns, body, totals, chains)

    def _turn(self, turns: Sequence[Sequence[Step]], keys: _Results) -> tuple[list[_Operands], list[list[Any]]]:
        """What all turns have in common: the operands of their steps, and all values among these."""
        body = [(group[0], self._common(group, keys), self._options(group, keys)) for group in zip(*turns, strict=True)]
        leaves = [_leaves((args, tuple(options.values()))) for _, args, options in body]
        if not any(isinstance(leaf, _Entry | _Place | _Carried) for of in leaves for leaf in of):
            raise _Unlike  # the same thing several times
        return body, leaves

    def _is_empty(self, of: Any) -> bool:
        """Whether an array is zero but where earlier turns wrote into it."""
        maker = self.makers.get(of.index) if isinstance(of, Ref) else None
        if maker is not None and maker.op == "put":
            return self._is_empty(maker.args[0])
        return maker is not None and maker.op == "full" and maker.args == (0,)

    def _common(self, group: Sequence[Step], keys: _Results) -> Any:
        """The operands of one step in all turns."""
        self.compared += 1
        try:
            return self._alike([s.args for s in group], keys)
        except _Unlike:
            if group[0].op not in TOTALS or len(group[0].args) != 2:
                raise
            return self._alike([group[0].args[::-1], *(s.args for s in group[1:])], keys)  # 0 + x is recorded as x + 0

    def _options(self, group: Sequence[Step], keys: _Results) -> Mapping[str, Any]:
        """The options of one step, which are the same in all turns, but for values among them."""
        head = group[0].attrs
        if any(s.attrs.keys() != head.keys() for s in group):
            raise _Unlike
        common = {}
        for key, value in head.items():
            of = [s.attrs[key] for s in group]
            common[key] = self._references(of, keys) if isinstance(value, Ref) else value
            if not isinstance(value, Ref) and any(type(v) is not type(value) or v != value for v in of):
                raise _Unlike
        return common

    def _alike(self, values: Sequence[Any], keys: _Results) -> Any:
        head = values[0]
        if any(isinstance(v, Ref) for v in values):
            return self._references(values, keys)
        if any(type(v) is not type(head) for v in values):
            raise _Unlike
        if isinstance(head, list | tuple):
            if any(len(v) != len(head) for v in values):
                raise _Unlike
            return type(head)(self._alike(column, keys) for column in zip(*values, strict=True))
        if isinstance(head, np.ndarray):
            if any(v.shape != head.shape or v.dtype != head.dtype for v in values):
                raise _Unlike
            if all(np.array_equal(v, head) for v in values):
                return head
            if head.dtype.kind == "i":
                return _place(values)
            raise _Unlike
        if all(v == head or v is head for v in values):
            return head
        if self.drawn.issuperset(values):
            return head
        if isinstance(head, int | float) and not isinstance(head, bool) and float(head).is_integer():
            return _place(values)
        raise _Unlike

    def _references(self, values: Sequence[Any], keys: _Results) -> Any:
        inner = [keys.get(v.index) if isinstance(v, Ref) else None for v in values]
        last = inner[-1]
        if last is not None:
            of = [(k - lag[0], lag[1]) if lag is not None else None for k, lag in enumerate(inner)]
            if all(lag == (0, last[1]) for lag in of):
                return _Within(last[1])
            if inner[0] is None and all(lag == (1, last[1]) for lag in of[1:]):
                return _Carried(last[1], values[0])
            raise _Unlike
        if any(v is not None for v in inner) or not all(isinstance(v, Ref) for v in values):
            raise _Unlike
        if all(v == values[0] for v in values):
            return values[0]
        places = [self.written.get(v.index) for v in values]
        if (first := places[0]) is not None:  # what an earlier loop gave, turn by turn
            if _turn_by_turn(places, first):
                return _Entry(self._gathered(first[0], first[2]), 0, self._shape(values[0]))
            raise _Unlike
        maker = self.makers.get(values[0].index)
        if maker is not None and maker.op in _UNPACKED and tuple(v.index for v in values) == maker.outputs:
            return _Entry(maker.args[0], _UNPACKED[maker.op](maker), self._shape(values[0]))
        raise _Unlike

    def _write(
        self,
        turns: Sequence[Sequence[Step]],
        body: Sequence[_Operands],
        totals: Mapping[_Key, Any],
        chains: Mapping[_Key, tuple[str, set[_Key]]],
    ) -> None:
        """The steps of one turn, which collects from nothing, and what all turns come to."""
        where = body[0][0].where
        turn = self._new("loop.turn", (), {"turns": len(turns)}, (), where, "int64")
        loop = _Loop(
            len(turns), turn, {(r, o): Ref(k) for r, (s, *_) in enumerate(body) for o, k in enumerate(s.outputs)}
        )
        known: dict[Any, Ref] = {}

        def operand(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(operand(v) for v in value)
            if isinstance(value, _Within):
                return loop.results[value.key]
            if isinstance(value, _Entry | _Place | _Carried):
                if (key := repr(value)) not in known:
                    known[key] = (
                        nothing(value.key) if isinstance(value, _Carried) else self._of_turn(value, turn, where)
                    )
                return known[key]
            return self._value(value)

        def nothing(key: _Key) -> Ref:
            shape = self._shape(loop.results[key])
            return self._new("loop.nothing", (), {"op": chains[key][0]}, shape, where, *body[key[0]][0].dtypes[:1])

        for step, args, options in body:
            attrs = {k: operand(v) if isinstance(v, _LEAVES) else v for k, v in options.items()}
            self.made.append(replace(step, args=operand(args), attrs=attrs))
        for key, start in totals.items():
            step, each = body[key[0]][0], loop.results[key]
            args, shape = (self._value(start), each, turn), self._shape(each)
            loop.partial |= chains[key][1]
            loop.totals[key] = self._new(
                "loop.total", args, {"op": chains[key][0]}, shape, step.where, *step.dtypes[:1]
            )
        for k, steps in enumerate(turns):
            self.written.update({i: (loop, k, (r, o)) for r, s in enumerate(steps) for o, i in enumerate(s.outputs)})

    def _of_turn(self, value: _Entry | _Place, turn: Ref, where: str) -> Ref:
        if isinstance(value, _Entry):
            source = self._value(value.source)
            return self._new("loop.entry", (source, turn), {"dim": value.dim}, value.shape, where)
        attrs = {"growth": np.asarray(value.growth).tolist()}
        dtype = "float32" if isinstance(value.first, float) else "int64"
        return self._new("loop.place", (turn, value.first), attrs, np.shape(value.first), where, dtype)

    # ------------------------------------------------------------------ what comes after

    def _gathered(self, loop: _Loop, key: _Key) -> Ref:
        """What all turns gave, along a new first dimension."""
        if key in loop.partial:
            raise _Unlike
        shape = (loop.turns, *self._shape(loop.results[key]))
        where = self.makers[loop.results[key].index].where
        return self._new("loop.gathered", (loop.results[key], loop.turn), {"dim": 0}, shape, where)

    def _shape(self, of: Ref) -> tuple[int, ...]:
        maker = self.makers[of.index]
        return maker.shapes[maker.outputs.index(of.index)][0]

    def _value(self, value: Any) -> Any:
        """An operand from outside of the loops."""
        if isinstance(value, list | tuple):
            return type(value)(self._value(v) for v in value)
        if not isinstance(value, Ref) or value.index not in self.written:
            return value
        loop, turn, key = self.written[value.index]
        if key in loop.totals and turn == loop.turns - 1:
            return loop.totals[key]
        return self._new("loop.entry", (self._gathered(loop, key), turn), {"dim": 0}, self._shape(value), "")

    def _collected(self, step: Step) -> Step:
        """A step after a loop, which may collect what the turns gave."""
        if step.op in _PACKED:
            given, dim = _PACKED[step.op](step)
            of = [self.written.get(v.index) if isinstance(v, Ref) else None for v in given]
            first = of[0] if of else None
            if first is not None and first[0].turns == len(of) and first[2] not in first[0].partial:
                if _turn_by_turn(of, first):
                    args = (first[0].results[first[2]], first[0].turn)
                    if step.op == "AddN":
                        return replace(step, op="loop.total", args=(0.0, *args), attrs={"op": "sum"})
                    joined = step.op in ("ConcatV2", "cat.default", "concatenate")
                    dim = dim + len(step.shapes[0][0]) if dim < 0 else dim
                    return replace(step, op="loop.gathered", args=args, attrs={"dim": dim, "joined": joined})
        return replace(step, args=self._value(step.args), attrs={k: self._value(v) for k, v in step.attrs.items()})

    def _new(
        self, op: str, args: tuple[Any, ...], attrs: Mapping[str, Any], shape: tuple[int, ...], where: str, *dtypes: str
    ) -> Ref:
        index = next(self.fresh)
        self.made.append(Step(op, args, attrs, (index,), ((shape,),), where, dtypes))
        self.makers[index] = self.made[-1]
        return Ref(index)


def _chain(key: _Key, body: Sequence[_Operands], leaves: Sequence[Sequence[Any]]) -> tuple[str, set[_Key]]:
    """How a total is collected: by the operations that lead from what is carried to what is handed on, whose results these are."""
    at: Any = None
    op, passed = None, set[_Key]()
    while at != key:
        users = [r for r, of in enumerate(leaves) for leaf in of if _is_link(leaf, key, at)]
        if len(users) != 1:
            raise _Unlike
        step, args, _ = body[users[0]]
        by = TOTALS.get(step.op) or _LESS.get(step.op) or (step.attrs["op"] if step.op == "loop.total" else None)
        first = bool(args) and _is_link(args[0], key, at)
        if by is None or op not in (None, by) or len(step.outputs) > 1:
            raise _Unlike
        if not first and (by == "put" or step.op not in TOTALS or len(args) != 2 or step.attrs.get("alpha", 1) != 1):
            raise _Unlike
        op, at = str(by), (users[0], 0)
        passed.add(at)
    used = [leaf for of in leaves for leaf in of if isinstance(leaf, _Within) and leaf.key == key]
    if op is None or used:
        raise _Unlike
    return op, passed


def _turn_by_turn(places: Sequence[tuple[_Loop, int, _Key] | None], first: tuple[_Loop, int, _Key]) -> bool:
    """Whether these are one result of all turns of a loop, in their order."""
    loop, _, key = first
    return all(p == (loop, k, key) for k, p in enumerate(places))


def _is_link(leaf: Any, key: _Key, at: _Key | None) -> bool:
    if at is None:
        return isinstance(leaf, _Carried) and leaf.key == key
    return isinstance(leaf, _Within) and leaf.key == at


def _place(values: Sequence[Any]) -> _Place:
    """Numbers that grow evenly."""
    growth = values[1] - values[0]
    if isinstance(growth, float) and not growth.is_integer():
        raise _Unlike
    if any(not np.array_equal(v, values[0] + k * growth) for k, v in enumerate(values)):
        raise _Unlike
    return _Place(values[0], growth)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


__all__ = ["TOTALS", "rolled"]
