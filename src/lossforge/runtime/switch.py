"""Whether losses on the CPU run kernels, or their framework's own operations."""

from __future__ import annotations

import os

_chosen: bool | None = None


def use_kernels(on: bool | None = None) -> bool:
    """Say whether kernels run, and return what was said before.

    With kernels off, losses run as their framework's own operations: slower, nothing to compile. None changes
    nothing. The default is on, unless the environment variable ``LOSSFORGE_KERNELS`` is ``0``.
    """
    global _chosen
    before = _chosen if _chosen is not None else os.environ.get("LOSSFORGE_KERNELS", "1") != "0"
    if on is not None:
        _chosen = on
    elif _chosen is None:
        _chosen = before
    return before
