"""The ways that a PyTorch function may take, as one recording.

Each way is traced by itself. A check that only raises an error is passed: it is no part of the formula. Any other decision
on values, and whatever the function does where a selection has no entries, is a choice between both ways (`ways`); in the
turns of a loop, by what a turn that is skipped does not add to the result (`turns`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import raised_on_purpose
from lossforge.frontends.recording import Recording, Ref, Step, needed
from lossforge.frontends.sources import folder
from lossforge.frontends.torch_tracing import TOO_MANY, Answer, Event, Site, Watch
from lossforge.frontends.turns import Guard, skipping
from lossforge.frontends.ways import Unlike, alike, choice

_OWN = tuple(folder("torch") + part for part in ("_", "fx", "utils"))
"""Beginnings of names of files whose errors are those of the tracer, not of the function."""
_MOST_WAYS = 48
_MOST_CALLS = 4000
"""Of PyTorch, on all ways together: some ten seconds."""
_MOST_GUARDS = 5
_MOST_ASKED = 64
"""Entries of a selection; no function asks whether there are more."""

Answers: TypeAlias = Mapping[Any, Answer]
_DECIDES = (
    "it takes a decision from values (`if`, `while`, `assert` or `and` on a tensor), and the two ways cannot be told as a choice; "
    "use torch.where instead of `if`"
)
_FEW = (
    "it does something else where a selection by truth values has fewer than {} entries, with these entries; sum under the mask, and "
    "use torch.where with its count"
)
_SHAPES = frozenset(
    {
        "view",
        "squeeze",
        "unsqueeze",
        "expand",
        "clone",
        "permute",
        "select",
        "slice",
        "alias",
        "_unsafe_view",
        "transpose",
        "t",
    }
)
"""Operations that one entry may bring about or spare, as it has no need of a dimension."""


class Ways:
    """The ways that a function takes, recorded by `trace`, which gives a tuple: the value, and what each event is about.

    `idle` are questions that were found to make no difference, and is kept from one recording to the next.
    """

    def __init__(self, trace: Callable[[Watch], Recording], idle: set[Any]) -> None:
        self.trace, self.idle = trace, idle
        self.known: dict[Any, tuple[list[Event], Recording]] = {}
        self.taken = self.calls = 0
        self.asked = ""
        """The line of the last question."""
        self.checks: set[Site] = set()
        self.turned: dict[Any, Site] = {}
        """Questions that are answered otherwise than usual, and where they are asked."""

    def recorded(self) -> Recording:
        """All ways as one recording."""
        return self._settled({}, *self._run({}))

    def usual(self) -> Recording:
        """The usual way alone."""
        _, recording = self._run({})
        return replace(recording, result=recording.result[0])

    def _run(self, answers: Answers) -> tuple[list[Event], Recording]:
        """One way; checks on it are passed."""
        way = frozenset(answers.items())
        if way not in self.known:
            self.known[way] = self._traced(answers)
        return self.known[way]

    def _traced(self, answers: Answers) -> tuple[list[Event], Recording]:
        while True:
            watch = Watch(answers, self.checks)
            self.taken += 1
            if self.taken > _MOST_WAYS or self.calls > _MOST_CALLS:
                raise AdoptionError(f"{self.asked}: {TOO_MANY}")
            try:
                return watch.events, self.trace(watch)
            except AdoptionError:
                raise
            except Exception as error:
                last = next((e for e in reversed(watch.events) if not e.selects and e.key not in answers), None)
                if last is None or last.site in self.checks or not raised_on_purpose(error, _OWN):
                    raise
                self.checks.add(last.site)
            finally:
                self.calls += watch.calls
                self.asked = watch.events[-1].where if watch.events else self.asked

    def _settled(self, answers: Answers, events: Sequence[Event], recording: Recording) -> Recording:
        """All ways that begin with these answers, of which one is given."""
        value, *about = recording.result
        result = usual = replace(recording, result=value)
        refs: dict[Any, Ref] = {}
        for event, ref in zip(events, about, strict=True):
            refs.setdefault(event.key, ref)
        first = {
            e.key: e for e in reversed(events) if e.key not in answers and e.site not in self.checks and not e.asserted
        }
        open_ = sorted(first.values(), key=events.index)
        self._note_idle(answers, usual, [e for e in open_ if e.selects and not e.asked])
        open_ = [e for e in open_ if self._question(answers, e) not in self.idle]
        result, open_ = self._loops(answers, result, open_, refs)
        decisions = [e for e in open_ if not e.selects]
        if len(decisions) > _MOST_GUARDS:
            raise AdoptionError(f"{decisions[-1].where}: {TOO_MANY}")
        for i, event in reversed([*enumerate(open_)]):
            before = {**answers, **{e.key: e.answer for e in open_[:i]}}
            result = self._either(before, result, usual, event, refs[event.key])
        alone = [e for e in open_ if self._is_alone(answers, e)]
        return self._together(answers, result, usual, alone, refs) if len(alone) > 1 else result

    def _together(
        self, answers: Answers, result: Recording, usual: Recording, events: Sequence[Event], refs: Mapping[Any, Ref]
    ) -> Recording:
        """The result, and what is done where selections have no entries, none of which makes a difference by itself."""
        found = self._other({**answers, **{e.key: 0 for e in events}}, events[-1], usual)
        if found is None:
            return result
        other = replace(found[1], result=found[1].result[0])
        fresh = 1 + max(o for s in result.steps for o in s.outputs)
        somewhere: list[Step] = []
        for event in events:
            asked: list[tuple[str, tuple[Ref, ...]]] = [("any.default", (refs[event.key],))]
            if somewhere:
                asked.append(("logical_or.default", (Ref(fresh - 1), Ref(fresh))))
            for op, args in asked:
                somewhere.append(Step(op, args, {}, (fresh,), (((),),), event.where, ("torch.bool",)))
                fresh += 1
        condition = Ref(somewhere[-1].outputs[0])
        try:
            return choice(replace(result, steps=(*result.steps, *somewhere)), other, condition, where=False, count=None)
        except Unlike:
            raise AdoptionError(f"{events[-1].where}: {_DECIDES}") from None

    def _is_alone(self, answers: Answers, event: Event) -> bool:
        """Whether it makes no difference that a selection has no entries, as far as others have some."""
        return event.selects and ("alone", self._question(answers, event)) in self.idle

    def _question(self, answers: Answers, event: Event) -> Any:
        """A question, for one recording as for another: where it is asked, on which way if somebody may ask for the number."""
        return event.site, tuple(self.turned[k] for k in answers if k in self.turned) if event.asked else None

    def _other(self, answers: Answers, event: Event, usual: Recording) -> tuple[Sequence[Event], Recording] | None:
        """Another way; None if there is none, since it ends in an error."""
        try:
            return self._run(answers)
        except AdoptionError:
            raise
        except Exception as error:
            if event.selects or isinstance(error, _OF_THE_FUNCTION) or raised_on_purpose(error, _OWN):
                return None
            raise AdoptionError(f"{event.where}: {_DECIDES} ({type(error).__name__} on one of them)") from None

    def _either(self, answers: Answers, result: Recording, usual: Recording, event: Event, about: Ref) -> Recording:
        """The result, and what is done for the other answer to one question."""
        if event.selects:
            alone = self._is_alone(answers, event)
            return result if alone else self._of_count(answers, result, usual, event, about)
        given = {**answers, event.key: not event.answer}
        self.turned[event.key] = event.site
        found = self._other(given, event, usual)
        if found is None:
            return result
        other = self._settled(given, *found)
        try:
            return choice(result, other, about, where=not event.answer, count=None)
        except Unlike:
            raise AdoptionError(f"{event.where}: {_DECIDES}") from None

    def _of_count(self, answers: Answers, result: Recording, usual: Recording, event: Event, about: Ref) -> Recording:
        """The result, and what is done where a selection has no entries, or few."""
        self.turned[event.key] = event.site
        least = self._least(answers, usual, event) if event.asked else 1
        for count in (least - 1, 0) if least > 1 else (0,):
            given = {**answers, event.key: count}
            found = self._other(given, event, usual)
            if found is None:
                continue
            other = replace(found[1], result=found[1].result[0])
            if any(0 in s.shapes[0][0] for s in other.steps if other.result in map(Ref, s.outputs)):
                continue  # an array of no entries is no loss
            try:
                if choice(usual, other, about, where=False, count=int(event.answer), few=count) is usual:
                    self.idle.add(("alone", self._question(answers, event))) if least == 1 else None
                    continue
                other = self._settled(given, *found)
                result = choice(result, other, about, where=False, count=int(event.answer), few=count)
            except Unlike:
                raise AdoptionError(f"{event.where}: {_DECIDES if not count else _FEW.format(least)}") from None
        return result

    def _least(self, answers: Answers, usual: Recording, event: Event) -> int:
        """The least number of entries for which the function does as usual, if there are any."""

        def as_usual(count: int) -> bool:
            return self._as_usual(answers, usual, event, count)

        simple = "least", self._question(answers, event)
        if simple in self.idle or as_usual(1):
            self.idle.add(simple)
            return 1
        if not as_usual(_MOST_ASKED):
            return int(event.answer)
        low, high = 1, 2  # not as usual, and as usual
        while not as_usual(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if as_usual(middle) else (middle, high)
        return high

    def _as_usual(self, answers: Answers, usual: Recording, event: Event, count: int) -> bool:
        """Whether the function does as usual where a selection has so many entries."""
        found = self._other({**answers, event.key: count}, event, usual)
        return found is None or _same(usual, replace(found[1], result=found[1].result[0]))

    def _note_idle(self, answers: Answers, usual: Recording, selections: Sequence[Event]) -> None:
        """Note selections of which nothing depends on whether they are empty, as far as nobody asks."""
        new = [e for e in selections if self._question(answers, e) not in self.idle]
        if not new:
            return
        try:
            _, recording = self._run({**answers, **{e.key: 0 for e in new}})
            same = _same(usual, replace(recording, result=recording.result[0]))
        except AdoptionError:
            raise
        except Exception:  # PyTorch has no value for it
            same = True
        if same:
            self.idle |= {self._question(answers, e) for e in new}

    def _loops(
        self, answers: Answers, usual: Recording, events: Sequence[Event], refs: Mapping[Any, Ref]
    ) -> tuple[Recording, list[Event]]:
        """The usual way with turns of loops that may be skipped, and the questions that are left."""
        sites: dict[Site, list[Event]] = {}
        for event in events:
            if not event.selects or event.asked:
                sites.setdefault(event.site, []).append(event)
        repeated = [of for of in sites.values() if len(of) > 1]
        left, result = list(events), usual
        while repeated:
            lead, *repeated = repeated
            if lead[0].selects and not self._as_usual(answers, usual, lead[0], 1):
                raise AdoptionError(f"{lead[0].where}: {_IN_LOOP.format('it depends on more than one entry')}")
            if lead[0].selects and not self._has_values(answers, lead):
                left = [e for e in left if e.site != lead[0].site]
                continue
            try:
                odd, even = (self._skipped(answers, lead, k) for k in (1, 0))
                several = [lead]  # questions of one turn that come to the same
                for other in [of for of in repeated if len(of) == len(lead)]:
                    if alike(odd, self._skipped(answers, other, 1)):
                        several.append(other)
                        repeated.remove(other)
                guards = [
                    Guard(tuple((refs[e.key], not e.selects and not e.answer) for e in turn), k % 2 == 1)
                    for k, turn in enumerate(zip(*several, strict=True))
                ]
                result = skipping(result, odd, even, self._none(answers, lead), guards)
            except AdoptionError:
                raise
            except Exception as reason:  # whatever it does without some turns
                if len(lead) > _MOST_GUARDS and not raised_on_purpose(reason, _OWN):
                    raise AdoptionError(f"{lead[0].where}: {_IN_LOOP.format(reason)}") from None
                continue
            gone = {e.key for of in several for e in of}
            left = [e for e in left if e.key not in gone]
        return result, left

    def _skipped(self, answers: Answers, turns: Sequence[Event], which: int | None) -> Recording:
        """What is done where every second turn is skipped, the even or the odd ones, or all of them."""
        other = {
            e.key: 0 if e.selects else not e.answer for k, e in enumerate(turns) if which is None or k % 2 == which
        }
        _, found = self._run({**answers, **other})
        return replace(found, result=found.result[0])

    def _has_values(self, answers: Answers, turns: Sequence[Event]) -> bool:
        """Whether the function has a value where some turns of a loop have selected nothing."""
        try:
            self._skipped(answers, turns, 1)
        except AdoptionError:
            raise
        except Exception:  # as `_other` takes it
            return False
        return True

    def _none(self, answers: Answers, turns: Sequence[Event]) -> Recording | None:
        """What is done where all turns are skipped; None if the function is not made for that."""
        try:
            return self._skipped(answers, turns, None)
        except AdoptionError:
            raise
        except Exception:  # whatever comes of a list of nothing
            return None


_OF_THE_FUNCTION = ZeroDivisionError, UnboundLocalError
"""Errors that the function ends in by itself, however it is run."""
_IN_LOOP = (
    "turns of a loop are skipped by a decision from values, in a way that was not recognised ({}); multiply by the truth value in place "
    "of `if`, and divide by the sum of these"
)


def _same(usual: Recording, other: Recording) -> bool:
    """Whether the same is done, but for numbers of entries and what is worked out from these."""
    mine, theirs = ([s for s in needed(r) if s.op.partition(".")[0] not in _SHAPES] for r in (usual, other))
    return [s.op for s in mine] == [s.op for s in theirs] and all(
        p == q or not _written(p)
        for a, b in zip(mine, theirs, strict=True)
        for p, q in zip(a.args, b.args, strict=False)
        if type(p) in (int, float) and type(q) in (int, float) and a.op.partition(".")[0] in _ARITHMETIC
    )


_ARITHMETIC = frozenset(("add", "sub", "rsub", "mul", "div", "pow", "where", "clamp", "full", "full_like", "fill"))


def _written(number: float) -> bool:
    """Whether a number may stand in the source: what is worked out from a drawn number of entries has more digits."""
    return float(f"{number:.3g}") == number
