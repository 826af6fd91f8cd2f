"""A workload made from a loss of the user's and descriptions of its arrays.

Its name holds all of it as JSON, so that the process of a contender makes the same workload by itself.
"""

from __future__ import annotations

import json
from functools import cache

from lossforge.bench.workloads import Workload
from lossforge.errors import LossforgeError
from lossforge.targets import Resolved, Target

_OURS = ("lossforge numpy", "lossforge torch")
_CONTENDERS = {
    "torch": (*_OURS, "torch original", "torch original compile"),
    "jax": (*_OURS, "lossforge jax", "jax original jit"),
    "tensorflow": (*_OURS, "lossforge tensorflow", "tensorflow original", "tensorflow original xla"),
    "numpy": (*_OURS, "numpy original, value alone"),
}
"""By the library that a loss was written for."""


def described(target: Target) -> str:
    """The name of a workload for a target.

    Raises:
        LossforgeError: it cannot be measured.
    """
    found = target.resolve()
    if not found.examples:
        raise LossforgeError(
            f"{target.text}: what arrays shall it be measured on? Give --input once for each argument, as in "
            f"--input 4096x1000:logits --input 4096:classes=1000; see `lossforge inputs`"
        )
    wanted, given = len(found.loss.arguments), len(found.examples)
    if wanted != given:
        raise LossforgeError(
            f"{target.text} takes {wanted} arrays ({', '.join(found.loss.arguments)}), but {given} were given by --input"
        )
    return json.dumps([target.text, target.inputs, target.wrt, dict(target.parameters)])


def own_workload(name: str) -> Workload:
    """The workload that a name of `described` tells."""
    found = _resolved(name)
    text = json.loads(name)[0]
    shapes = ", ".join(" × ".join(map(str, a.shape)) or "a number" for a in found.examples)
    library = getattr(found.loss, "library", "")
    arrays = dict(zip(found.loss.arguments, found.examples, strict=True))
    return Workload(
        name,
        f"{text.rpartition(':')[2]}, {shapes}",
        "",
        lambda rng, small: arrays,
        _CONTENDERS.get(library, _OURS),
        repeat=max(1, min(200, 100_000 // max(a.size for a in found.examples))),
        wrt=found.loss.arguments.index(found.loss.predictions[0]),
        adopted=found.loss,
        original=found.original,
        parameters=found.parameters,
    )


@cache
def _resolved(name: str) -> Resolved:
    text, inputs, wrt, parameters = json.loads(name)
    return Target(text, tuple(inputs), tuple(wrt), parameters).resolve()
