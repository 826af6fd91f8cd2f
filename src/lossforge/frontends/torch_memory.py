"""What a module keeps from one call to the next: tensors that it writes to, or puts others in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Memory:
    """The tensors and numbers of a module, which is after each call as it was given."""

    def __init__(self, function: Any) -> None:
        self.modules = list(function.modules()) if isinstance(function, torch.nn.Module) else []
        self.written: dict[str, None] = {}
        """The names of those that a call changed."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Undo what a call changes, and note it."""
        stores = [store for m in self.modules for store in (m.__dict__, m._buffers)]
        before = [dict(store) for store in stores]
        values = {
            id(v): (v, v._version, v.clone()) for store in before for v in store.values() if isinstance(v, torch.Tensor)
        }
        try:
            yield
        finally:
            for store, was in zip(stores, before, strict=True):
                changed = [k for k in {**was, **store} if store.get(k) is not was.get(k) or _moved(was.get(k), values)]
                self.written |= dict.fromkeys(str(k) for k in changed)
                store.clear()
                store.update(was)
            for value, version, copy in values.values():
                if value._version != version:
                    with torch.no_grad():
                        value.copy_(copy)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """While the function is made functional, copies in place of the tensors that it writes to."""
        stores = [store for m in self.modules for store in (m.__dict__, m._buffers)]
        before = [dict(store) for store in stores]
        wrapped: Any = torch._C._functorch._wrap_functional_tensor
        level = torch._C._functorch.maybe_current_level()
        for store in stores:
            store.update({
                k: wrapped(v.clone(), level) for k, v in store.items() if k in self.written and isinstance(v, torch.Tensor)
            })  # fmt: skip
        try:
            yield
        finally:
            for store, was in zip(stores, before, strict=True):
                store.clear()
                store.update(was)


def _moved(value: Any, values: dict[int, tuple[torch.Tensor, int, torch.Tensor]]) -> bool:
    return id(value) in values and value._version != values[id(value)][1]
