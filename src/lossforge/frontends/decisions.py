"""Decisions that a function takes from values while it is recorded: checks are passed over, others are refused."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from lossforge.errors import AdoptionError

T = TypeVar("T")

_MOST = 32


class Decisions:
    """What Python is told of truth values, in turn: as `answers` says, then False."""

    def __init__(self, answers: Sequence[bool] = ()) -> None:
        self.answers = list(answers)
        self.given: list[bool] = []
        self.places: list[str] = []

    def decide(self, place: str = "") -> bool:
        """The answer to the next one, which is asked for in this line."""
        if len(self.given) >= _MOST:
            raise AdoptionError(
                "it takes too many decisions from values; use the library's own `where` for `if` and `while`"
            )
        answer = self.answers[len(self.given)] if len(self.given) < len(self.answers) else False
        self.given.append(answer)
        self.places.append(place)
        return answer


def settle(trace: Callable[[Decisions], T], own: Sequence[str], refusal: str) -> T:
    """The trace in which every decision on values goes the only way that does not end in an error.

    Such a decision is a check of arguments. If both ways end in a value, the loss depends on it, and is refused.

    Args:
        trace: records the function.
        own: parts of the names of files whose errors are those of the library or the recorder, not the function's.
        refusal: what is said of the others, behind their line.
    """
    decisions = Decisions()
    while True:
        try:
            result = trace(decisions)
            break
        except Exception as error:
            if not decisions.given or decisions.given[-1] or not raised_on_purpose(error, own):
                raise
            decisions = Decisions([*decisions.given[:-1], True])
    for i, answer in enumerate(decisions.given):
        if not answer and not _fails(trace, [*decisions.given[:i], True], own):
            raise AdoptionError(f"{decisions.places[i]}{': ' if decisions.places[i] else ''}{refusal}")
    return result


def _fails(trace: Callable[[Decisions], object], answers: Sequence[bool], own: Sequence[str]) -> bool:
    """Whether this way ends in an error that the function raises."""
    try:
        trace(Decisions(answers))
    except AdoptionError:
        return False
    except Exception as error:
        return raised_on_purpose(error, own)
    return False


def raised_on_purpose(error: Exception, own: Sequence[str]) -> bool:
    """Whether an exception comes from a `raise` or an `assert` of the function."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    stranger = not any(part in frame.filename for part in own)
    return stranger and (not frame.line or re.search(r"\b(raise|assert)\b", frame.line) is not None)
