"""Results as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lossforge.bench.run import Result
from lossforge.bench.workloads import workload

if TYPE_CHECKING:
    from rich.table import Table


def table(results: Sequence[Result]) -> Table:
    """One row for each contender, under its workload."""
    from rich.table import Table

    view = Table(title="value and gradient; medians", title_justify="left")
    view.add_column("workload")
    view.add_column("contender")
    for heading in ("time", "× stream", "× lossforge", "beyond inputs", "first call", "… from cache"):
        view.add_column(heading, justify="right")
    last = ""
    for r in results:
        best = min(o.median for o in results if o.workload == r.workload and o.contender.startswith("lossforge"))
        view.add_row(
            workload(r.workload).title if r.workload != last else "",
            r.contender, _seconds(r.median), f"{r.multiple:.2f}", f"{r.median / best:.2f}",
            _bytes(r.memory), _seconds(r.cold), _seconds(r.warm),
            style="bold" if r.contender.startswith("lossforge") else None,
            end_section=False,
        )  # fmt: skip
        last = r.workload
    return view


def chart(results: Sequence[Result], path: Path) -> None:
    """A bar for each contender, as a multiple of the stream, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(r.workload for r in results))
    columns = 2 if len(names) > 1 else 1
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.2 * columns, 0.6 + 2.3 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        mine = [r for r in results if r.workload == name][::-1]
        bars = axis.barh(
            [r.contender for r in mine], [r.multiple for r in mine],
            color=["#0072b2" if r.contender.startswith("lossforge") else "#b8bec4" for r in mine],
        )  # fmt: skip
        axis.bar_label(bars, [f"{r.multiple:.2f}" for r in mine], padding=3, fontsize=8)
        axis.set_xscale("log")
        low = min(1.0, *(r.multiple for r in mine)) * 0.7
        axis.set_xlim(low, max(r.multiple for r in mine) * 2.2)
        axis.axvline(1, color="#d55e00", linewidth=1)
        axis.set_title(workload(name).title, fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.suptitle("time for value and gradient, as a multiple of one streaming pass (line)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f} MiB"
