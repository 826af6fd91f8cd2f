"""Results as a table, as Markdown for the docs, and as a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossforge.bench.results import Result, mebibytes, seconds, times
from lossforge.bench.run import judged
from lossforge.bench.workloads import workload

if TYPE_CHECKING:
    from rich.table import Table

_VERDICTS = {True: "met", False: "MISSED", None: "open"}
_STYLES = {True: "green", False: "bold red", None: "dim"}


def table(results: Sequence[Result]) -> Table:
    """One row for each contender, under its workload."""
    from rich.table import Table

    view = Table(title="value and gradient; medians", title_justify="left")
    view.add_column("workload")
    view.add_column("contender")
    on_gpu = any(r.call is not None for r in results)
    for heading in ("time", "× stream", "× lossforge", "memory", "first call", "… from disk", "error"):
        view.add_column(heading, justify="right")
    if on_gpu:
        view.add_column("call", justify="right")
    last = ""
    for r in results:
        title = workload(r.workload).title if r.workload != last else ""
        last = r.workload
        if r.problem is not None:
            view.add_row(title, r.contender, f"[dim]{_short(r.problem)}[/]")
            continue
        mine = [
            o.median for o in results if o.workload == r.workload and o.contender.startswith("lossforge") and o.median
        ]
        view.add_row(
            title, r.contender, seconds(r.median), times(r.multiple),
            times(r.median / min(mine)) if mine and r.median else "", mebibytes(r.memory), seconds(r.cold),
            seconds(r.warm), "" if r.error is None else f"{r.error:.0e}", *([seconds(r.call)] if on_gpu else []),
            style="bold" if r.contender.startswith("lossforge") else None,
        )  # fmt: skip
    view.caption = "memory: the peak beyond the inputs and the gradient; error: of the gradient, of its largest entry"
    if on_gpu:
        view.caption += "; time: what the GPU is busy for; call: from call to call"
    view.caption_justify = "left"
    return view


def targets(results: Sequence[Result]) -> Table:
    """What must be reached, and what was."""
    from rich.table import Table

    view = Table(title="what must be reached", title_justify="left")
    for heading in ("workload", "must", "measured", ""):
        view.add_column(heading)
    last = ""
    for row in judged(results):
        title = workload(row["workload"]).title if row["workload"] != last else ""
        last = row["workload"]
        view.add_row(title, row["must"], row["measured"], f"[{_STYLES[row['met']]}]{_VERDICTS[row['met']]}[/]")
    return view


def _short(text: str) -> str:
    from rich.markup import escape

    return escape(text if len(text) < 60 else text[:57] + "…")


# ------------------------------------------------------------------------------------- Markdown


def markdown(record: Mapping[str, Any]) -> str:
    """A record of `lossforge bench` as two tables for the docs."""
    known = record["machine"]
    lines = [
        f"{known['device']}, {known['cores']} cores, {known['system']}, Python {known['python']}; "
        + ", ".join(f"{n} {v}" for n, v in known["versions"].items())
        + f"; {known['date']}, load before the run {known['load']}.",
        "",
        "| workload | contender | time | × stream | memory | first call | … from disk |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    last = ""
    for row in record["results"]:
        r = Result(**{k: v for k, v in row.items() if k != "multiple"})
        title = workload(r.workload).title if r.workload != last else ""
        last = r.workload
        name = f"**{r.contender}**" if r.contender.startswith("lossforge") else r.contender
        cells = (
            (r.problem.replace("|", "/"), "", "", "", "")
            if r.problem is not None
            else (seconds(r.median), times(r.multiple), mebibytes(r.memory), seconds(r.cold), seconds(r.warm))
        )
        lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    lines += ["", "| workload | must | measured | |", "|---|---|---|---|"]
    for row in record["targets"]:
        title = workload(row["workload"]).title
        lines.append(f"| {title} | {row['must']} | {row['measured']} | {_VERDICTS[row['met']]} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------- the picture


_OURS, _PEERS, _LINE = "#0072b2", "#b8bec4", "#d55e00"


def chart(results: Sequence[Result], path: Path) -> None:
    """A bar for each contender, as a multiple of the stream, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = [r for r in results if r.multiple is not None]
    names = list(dict.fromkeys(r.workload for r in measured))
    if not names:
        return
    columns = 2 if len(names) > 1 else 1
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    bars = [max(sum(r.workload == n for r in measured) for n in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(6.4 * columns, 0.8 + sum(0.55 + 0.21 * b for b in bars)), squeeze=False,
        gridspec_kw={"height_ratios": [0.55 + 0.21 * b for b in bars]}, layout="constrained",
    )  # fmt: skip
    for axis, name in zip(axes.flat, names, strict=False):
        _bars(axis, sorted((r for r in measured if r.workload == name), key=lambda r: -(r.multiple or 0)))
        axis.set_title(workload(name).title, fontsize=10, loc="left", weight="bold")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.suptitle(
        "Value and gradient of a loss\ntime as a multiple of a streaming pass over the same bytes (line)",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _bars(axis: Any, results: Sequence[Result]) -> None:
    multiples = [r.multiple or 0 for r in results]
    ours = [r.contender.startswith("lossforge") for r in results]
    bars = axis.barh(
        [r.contender for r in results], multiples, color=[_OURS if o else _PEERS for o in ours], height=0.78
    )
    labels = [f"{m:.3g}" if m < 1000 else f"{m:,.0f}" for m in multiples]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(min(1.0, *multiples) * 0.7, max(1.0, *multiples) * 1.9)
    axis.axvline(1, color=_LINE, linewidth=1)
    axis.tick_params(axis="both", which="both", labelsize=8, length=0)
    axis.xaxis.set_major_locator(_no_ticks())
    axis.xaxis.set_minor_locator(_no_ticks())
    for label, is_ours in zip(axis.get_yticklabels(), ours, strict=True):
        label.set_weight("bold" if is_ours else "normal")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
