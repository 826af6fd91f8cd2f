"""Decisions that a function takes from values while it is recorded: checks are passed over, others are refused."""

from __future__ import annotations

import dis
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import CodeType, TracebackType
from typing import Any, TypeVar

from lossforge.errors import AdoptionError

T = TypeVar("T")

_MOST = 32
_MOST_WAYS = 32


class Decisions:
    """What Python is told of truth values, in turn: as `answers` says, then False."""

    def __init__(self, answers: Sequence[bool] = ()) -> None:
        self.answers = list(answers)
        self.given: list[bool] = []
        self.places: list[str] = []
        self.conditions: list[Any] = []
        self.known: dict[Any, bool] = {}

    def decide(self, place: str = "", condition: Any = None, same: Any = None) -> bool:
        """The answer to the next one, which is asked for in this line.

        `condition` is what is asked for, if it is known; what was asked for as the `same` before has its answer.
        """
        if same in self.known:
            return self.known[same]
        if len(self.given) >= len(self.answers) + _MOST:
            raise AdoptionError(f"{place}{': ' if place else ''}{_TOO_MANY}")
        answer = self.answers[len(self.given)] if len(self.given) < len(self.answers) else False
        self.given.append(answer)
        self.places.append(place)
        self.conditions.append(condition)
        if same is not None:
            self.known[same] = answer
        return answer


_TOO_MANY = "it takes too many decisions from values; use the library's own `where` for `if` and `while`"


def settle(trace: Callable[[Decisions], T], own: Sequence[str], refusal: str, choose: Callable[[Any, T, T], T]) -> T:
    """The trace in which every decision on values goes both ways, or the only one that does not end in an error.

    A decision of which one way ends in an error is a check of arguments. Of any other, the result is a choice between
    both ways, by `choose`; or it is refused.

    Args:
        trace: records the function.
        own: beginnings of the names of files whose errors are those of the library or the recorder, not the function's.
        refusal: what is said of those that are refused, behind their line.
        choose: makes a choice of a condition, the result where it holds, and that where it does not.
    """
    ways = itertools.count(1)

    def follow(answers: list[bool]) -> T:
        """What comes of all ways that begin with these answers."""
        decisions = Decisions(answers)
        known = len(answers)
        error: Exception | None = None
        try:
            result = trace(decisions)
        except Exception as raised:
            if len(decisions.given) <= known or not raised_on_purpose(raised, own):
                raise
            error = raised
        if len(decisions.given) <= known:
            return result
        place = decisions.places[known] + (": " if decisions.places[known] else "")
        if next(ways) > _MOST_WAYS:
            raise AdoptionError(place + _TOO_MANY)
        try:
            otherwise = follow([*answers, False])
        except Exception as raised:
            if error is None or isinstance(raised, AdoptionError) or not raised_on_purpose(raised, own):
                raise
            return follow([*answers, True])
        try:
            chosen = follow([*answers, True])
        except AdoptionError:
            raise
        except Exception as raised:
            if raised_on_purpose(raised, own):
                return otherwise
            raise AdoptionError(place + refusal) from raised
        if decisions.conditions[known] is None:
            raise AdoptionError(place + refusal)
        try:
            return choose(decisions.conditions[known], chosen, otherwise)
        except AdoptionError as error:
            raise AdoptionError(place + str(error)) from None

    return follow([])


def raised_on_purpose(error: Exception, own: Sequence[str]) -> bool:
    """Whether an exception comes from a `raise` or an `assert` of the function, or from its message.

    `own` are beginnings of the names of files that are not the function's.
    """
    return any(
        _raises(frame.f_code, entry.tb_lasti)
        for entry in _entries(error.__traceback__)
        if not (frame := entry.tb_frame).f_code.co_filename.startswith(tuple(own))
    )


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _raises(code: CodeType, offset: int) -> bool:
    """Whether nothing but an exception can come of the instruction at an offset: a `raise` follows in straight line."""
    for instruction in dis.get_instructions(code):
        if instruction.offset >= offset:
            if instruction.opname == "RAISE_VARARGS":
                return True
            if instruction.opcode in _JUMPS or instruction.opname.startswith("RETURN"):
                return False
    return False


@lru_cache(4096)
def asserted(code: CodeType, offset: int) -> bool:
    """Whether the instruction at an offset works out the condition of an `assert`, of which nothing else comes."""
    after = itertools.dropwhile(lambda i: i.offset < offset, dis.get_instructions(code))
    for instruction, following in itertools.pairwise(after):
        if instruction.opcode in _JUMPS:
            to = next((i for i in dis.get_instructions(code) if i.offset == instruction.argval), None)
            return "LOAD_ASSERTION_ERROR" in (following.opname, "" if to is None else to.opname)
        if instruction.opname.startswith(("RETURN", "RAISE", "STORE", "POP_TOP")):
            return False
    return False


@lru_cache(4096)
def passing(code: CodeType, offset: int) -> bool | None:
    """The answer with which a check passes, whose condition is asked for by the instruction at an offset; None if it is none.

    A check is a branch of which nothing else comes than an exception, or a warning.
    """
    inverted = False
    after = list(itertools.dropwhile(lambda i: i.offset < offset, dis.get_instructions(code)))
    for instruction, following in itertools.pairwise(after):
        if instruction.opcode in _JUMPS:
            if "IF_TRUE" not in instruction.opname and "IF_FALSE" not in instruction.opname:
                return None
            jumps_if = ("IF_TRUE" in instruction.opname) is not inverted
            to: int = instruction.argval
            if _only_raises(code, following.offset) or _warns(after, following.offset, to) or _is_left(code, to):
                return jumps_if
            return not jumps_if if _only_raises(code, to) or _is_left(code, following.offset) else None
        if instruction.opname == "UNARY_NOT":
            inverted = not inverted
        elif instruction.offset > offset and instruction.opname not in ("NOP", "CACHE", "TO_BOOL"):
            return None
    return None


def _only_raises(code: CodeType, offset: int) -> bool:
    """Whether every way from an instruction on ends in an exception."""
    instructions = {i.offset: i for i in dis.get_instructions(code)}
    order = sorted(instructions)
    behind = dict(itertools.pairwise(order))
    pending, seen = [offset], set[int]()
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        instruction = instructions[at]
        if instruction.opname.startswith(("RETURN_V", "RETURN_C", "YIELD")) or (
            instruction.opcode in _JUMPS and instruction.argval < offset
        ):
            return False
        if instruction.opname in ("RAISE_VARARGS", "RERAISE"):
            continue
        if instruction.opcode in _JUMPS:
            pending.append(instruction.argval)
        if instruction.opname not in ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT") and at in behind:
            pending.append(behind[at])
    return True


def _is_left(code: CodeType, offset: int) -> bool:
    """Whether a function that only checks is left at an offset: one that gives nothing back, and writes nothing down."""
    instructions = list(dis.get_instructions(code))
    returns = [(a, b) for a, b in itertools.pairwise(instructions) if b.opname == "RETURN_VALUE"]
    gives = any(a.opname != "LOAD_CONST" or a.argval is not None for a, _ in returns)
    writes = any(i.opname in ("STORE_ATTR", "STORE_SUBSCR", "STORE_GLOBAL", "STORE_DEREF") for i in instructions)
    methods = any(i.opname == "LOAD_METHOD" and i.argval in GROWING for i in instructions)
    return not gives and not writes and not methods and any(a.offset == offset for a, _ in returns)


GROWING = frozenset(("append", "extend", "insert", "add", "update", "pop", "remove", "setdefault"))
"""Methods of containers that change how much is in them."""


def _warns(instructions: Sequence[dis.Instruction], begin: int, end: int) -> bool:
    """Whether all that is done between two offsets is to say something."""
    way = [i for i in instructions if begin <= i.offset < end]
    says = any(i.opname.startswith("LOAD") and i.argval in SAYING for i in way)
    acts = any(i.opcode in _JUMPS or i.opname.startswith(("STORE", "RETURN", "RAISE", "DELETE")) for i in way)
    return says and not acts


SAYING = frozenset(("warn", "warning", "print", "info", "debug"))
"""Functions that are called for what they say."""
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
