"""`lossforge demo`: three losses, derived, explained, verified, and used to train models on real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lossforge.demo.packages import require

if TYPE_CHECKING:
    from rich.console import Console

    from lossforge.demo.run import Result


def main(
    framework: str = "numpy",
    output: str | Path = "lossforge-demo",
    *,
    console: Console | None = None,
    effort: float = 1.0,
) -> tuple[Result, ...]:
    """Run the demo.

    Args:
        framework: what the models are trained in: "numpy", "torch", "tensorflow" or "jax".
        output: the folder for derivations and pictures; it is made if need be.
        console: where to report; the terminal by default.
        effort: the share of the usual training steps that is taken.

    Raises:
        FrameworkError: the framework is not known.
        MissingPackageError: the framework, or what the demo shows itself with, is not installed.
    """
    require({"matplotlib": "matplotlib", "sklearn": "scikit-learn", "skimage": "scikit-image"}, extra="demo")
    from lossforge.demo.run import run

    return run(framework, Path(output), console, effort)


__all__ = ["main"]
