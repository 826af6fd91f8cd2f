"""`torch.compile`: a call of a loss as one step of the captured graph.

Dynamo would trace the binding of a call, which is plain Python that it need not see. It is told to leave the
call alone; AOTAutograd then runs it on fake tensors and records the operations of its value and of its
backward pass, so that the compiler fuses them with what is around them. As with every function that
AOTAutograd compiles, that backward pass has none of its own: second derivatives are taken inside the compiled
function, by `torch.func`. Imported only while `torch.compile` is tracing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lossforge.adapters.registry import LOSSES
from lossforge.adapters.torch_operators import compiling

if TYPE_CHECKING:
    from lossforge.loss import Loss


def call(loss: Loss, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A method of a loss as one step of the graph, into which only tensors, numbers and strings can pass."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    return _step(loss.key, method, args, given, [name for name in kwargs if name not in given])


@torch._dynamo.nonstrict_trace
@torch.compiler.disable  # if the step fails, it runs as it is, and tells why
def _step(key: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], absent: Sequence[str]) -> Any:
    values = {name: _without_symbols(v) for name, v in kwargs.items()} | dict.fromkeys(absent)
    loss = LOSSES[key]
    with compiling():
        return getattr(type(loss), method).__wrapped__(loss, *args, **values)


def _without_symbols(value: Any) -> Any:
    """A number that the compiler keeps symbolic, as a tensor."""
    if isinstance(value, torch.SymFloat | torch.SymInt):
        return torch.scalar_tensor(value, dtype=torch.float64)  # type: ignore[arg-type]
    return value
