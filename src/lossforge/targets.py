"""What the argument of a command names: a loss of the catalogue, or ``FILE.py:NAME``, adopted if need be."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lossforge.adoption import adopt
from lossforge.errors import LossforgeError
from lossforge.frontends.files import FileError, called, load_module
from lossforge.frontends.inputs import drawn
from lossforge.loss import Loss


@dataclass(frozen=True)
class Target:
    """The argument of a command, with the options that tell what it is."""

    text: str
    inputs: tuple[str, ...] = ()
    """Descriptions of example arrays, one for each array argument; see `lossforge.frontends.inputs`."""
    wrt: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self) -> Resolved:
        """The loss that is meant.

        Raises:
            LossforgeError: there is no such loss, or it cannot be adopted.
        """
        from lossforge.catalogue import LOSSES

        arrays = tuple(drawn(self.inputs))
        if self.text in LOSSES:
            return Resolved(LOSSES[self.text], None, arrays, dict(self.parameters))
        if ":" not in self.text:
            near = difflib.get_close_matches(self.text, LOSSES, n=3)
            hint = f"; did you mean {' or '.join(near)}" if near else ""
            raise LossforgeError(f"no loss {self.text!r} in the catalogue{hint}. A loss of your own is FILE.py:NAME")
        file, _, name = self.text.rpartition(":")
        module = load_module(Path(file))
        found = _member(module, file, name)
        if isinstance(found, Loss):
            return Resolved(found, None, arrays, dict(self.parameters))
        made = _instance(found, self.text, file)
        examples = arrays or _examples(module, file, name)
        if not examples:
            raise LossforgeError(f"{self.text}: {_advice(made, name)}")
        loss = adopt(made, *examples, wrt=list(self.wrt) or None, name=_name(found), **self.parameters)
        return Resolved(loss, made, tuple(map(_plain, examples)), {})


@dataclass(frozen=True)
class Resolved:
    """A loss, and what it was adopted from."""

    loss: Loss
    original: Any
    """The function, module or loss of another library; None for a loss of lossforge."""
    examples: tuple[np.ndarray, ...]
    parameters: Mapping[str, Any]
    """Values of the loss's parameters that are still to be given to it."""


def _name(found: Any) -> str | None:
    name = getattr(found, "__name__", None)
    return None if name in (None, "<lambda>") else str(name)


def _member(module: Any, file: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise FileError(f"{file} has no {name!r}; the file has {', '.join(_losses(module)) or 'none'}")
        found = getattr(found, part)
    if not callable(found):
        has = ", ".join(_losses(module)) or "none"
        raise FileError(f"{file}:{name} is a {type(found).__name__}, not a loss; the file has {has}")
    return found


def _losses(module: Any) -> list[str]:
    """Names in a file that may be losses: its own functions and classes, and losses of lossforge."""
    own = {n: v for n, v in vars(module).items() if not n.startswith("_") and not n.endswith("example_inputs")}
    return sorted(
        n
        for n, v in own.items()
        if isinstance(v, Loss) or (callable(v) and getattr(v, "__module__", None) == module.__name__)
    )


def _instance(found: Any, text: str, file: str) -> Any:
    if not inspect.isclass(found):
        return found
    try:
        return called(found, file)
    except FileError as error:
        if "missing" not in str(error):
            raise
        raise FileError(
            f"{text} is a class that needs arguments ({error}); make an instance in the file, as in "
            f"`my_loss = {found.__name__}(…)`, and name that"
        ) from error


def _examples(module: Any, file: str, name: str) -> tuple[Any, ...]:
    """What the file says: ``NAME_example_inputs`` or ``example_inputs``, a function or its result, or one by name."""
    stem = name.rpartition(".")[2]
    found = getattr(module, f"{stem}_example_inputs", None)
    if found is None:
        found = getattr(module, "example_inputs", None)
        if isinstance(found, Mapping):
            found = found.get(stem)
    if callable(found):
        found = called(found, file)
        if isinstance(found, Mapping):
            found = found.get(stem)
    if found is None:
        return ()
    if not isinstance(found, list | tuple):
        raise FileError(f"{file}: example_inputs gave a {type(found).__name__}; expected a tuple of arrays")
    return tuple(found)


def _advice(made: Any, name: str) -> str:
    call = getattr(made, "forward", None) or getattr(made, "call", None) or made
    try:
        parameters = [
            p for p in inspect.signature(call).parameters.values() if p.default is p.empty and p.kind in (0, 1)
        ]
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.name != "self"]
    what = f"{name} takes ({', '.join(names)})" if names else name
    return (
        f"{what}, and lossforge must see an example of each array: give --input once for each, in their order, as in "
        f"--input 64x10:logits --input 64:classes=10, or put a function example_inputs that returns them into the file. "
        f"`lossforge inputs` lists what can be written"
    )


def _plain(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def parsed(values: Sequence[str]) -> tuple[str, ...]:
    """``--wrt`` options: names, several separated by commas."""
    return tuple(n.strip() for v in values for n in v.split(",") if n.strip())
