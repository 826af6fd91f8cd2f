"""Every loss by its key: for tracers that pass nothing but strings, and to know a loss without importing the class."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from lossforge.loss import Loss

LOSSES: weakref.WeakValueDictionary[str, Loss] = weakref.WeakValueDictionary()


def is_loss(value: Any) -> TypeGuard[Loss]:
    """Whether `value` is a `Loss`."""
    return value is not None and LOSSES.get(getattr(value, "key", "")) is value
