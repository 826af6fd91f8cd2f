"""What a function takes: arrays, options, numbers; and which arrays are predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.errors import AdoptionError
from lossforge.frontends.recording import FrontEnd
from lossforge.loss import PREDICTION_NAMES


def as_array(x: Any) -> np.ndarray:
    """An example as an array of NumPy, in float32, truth values, int32 or int64.

    Raises:
        AdoptionError: it holds something else than real numbers.
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        if str(array.dtype) == "bfloat16":
            return array.astype(np.float32)
        raise AdoptionError(f"an example of dtype {array.dtype}; losses take real numbers, integers and truth values")
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array if array.dtype.kind == "b" or array.dtype == np.int32 else array.astype(np.int64)


def arguments(
    front: FrontEnd, count: int, given: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any], dict[str, float]]:
    """The names of the array arguments, fixed options, and numbers that may become parameters.

    Raises:
        AdoptionError: an argument is not given.
    """
    try:
        signature = front.signature()
        found = list(signature.parameters.values())
    except (TypeError, ValueError):
        found = []
    positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = positional[:count]
    names += [f"x{i}" for i in range(len(names), count)]
    rest = [p for p in found if p.name not in names and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in rest if p.default is p.empty and p.name not in given]
    if missing:
        raise AdoptionError(
            f"the function also takes {missing[0]!r}; give an example array for it, or its value by keyword"
        )
    options: dict[str, Any] = {}
    numbers: dict[str, float] = dict(front.attributes())
    for p in rest:
        value = given.get(p.name, p.default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[p.name] = value
        elif p.name in given:
            options[p.name] = value
    for key, value in given.items():
        if key not in {p.name for p in rest} and key not in numbers:
            options[key] = value
        elif key in numbers:
            numbers[key] = value
    return names, options, numbers


def predictions(names: Sequence[str], arrays: Sequence[np.ndarray], wrt: Any) -> tuple[str, ...]:
    """The names of the arguments that the gradient is taken with respect to.

    Raises:
        AdoptionError: `wrt` names none, or nothing can be differentiated.
    """
    if wrt is not None:
        wanted = [wrt] if isinstance(wrt, str | int) else list(wrt)
        found: list[str] = []
        for w in wanted:
            if (isinstance(w, int) and not -len(names) <= w < len(names)) or (isinstance(w, str) and w not in names):
                raise AdoptionError(f"wrt={w!r} is no argument; there are {', '.join(names)}")
            found.append(names[w] if isinstance(w, int) else w)
        return tuple(found)
    floats = [n for n, a in zip(names, arrays, strict=True) if a.dtype.kind == "f"]
    if not floats:
        raise AdoptionError("no example is an array of floating-point numbers, so there is nothing to differentiate")
    named = [n for n in floats if n.lower() in PREDICTION_NAMES]
    return ((named or floats)[0],)
