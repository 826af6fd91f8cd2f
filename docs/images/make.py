"""Draws the picture of the README: a definition, the derivation that lossforge prints of it, and both functions.

python docs/images/make.py
"""

import inspect
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import lossforge as lf

BLUE, VERMILION, INK, PALE = "#0072B2", "#D55E00", "#222222", "#F4F6F8"
LINE = 0.232
"""Inches from one line of text to the next."""


@lf.loss
def huber(pred, true, *, delta=1.0):
    """Squared for small errors, linear for large ones."""
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


def card(panel: Axes, title: str, lines: list[str], height: float) -> None:
    """A title over a pale box of text, in which the gradient of the prediction stands out."""
    panel.set_axis_off()
    panel.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK)
    box = FancyBboxPatch((0, 0), 1, 1, boxstyle="square,pad=0", facecolor=PALE, edgecolor="none")
    box.set(transform=panel.transAxes, clip_on=False)
    panel.add_patch(box)
    for i, line in enumerate(lines):
        style = {"color": VERMILION, "fontweight": "bold"} if "∂pred = clip" in line else {"color": INK}
        place = (0.02, 1 - (i + 0.8) * LINE / height)
        panel.text(
            *place, line, transform=panel.transAxes, family="DejaVu Sans Mono", fontsize=10.5, va="center", **style
        )


def plot(panel: Axes, title: str, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """A function of the error, with the places at which its formula changes."""
    panel.axhline(0, color=INK, lw=0.6)
    panel.plot(x, y, color=colour, lw=3)
    for place, name in ((-1, "−δ"), (1, "δ")):
        panel.axvline(place, color=INK, lw=0.8, ls=":")
        panel.annotate(
            name, (place, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
        )
    panel.set_title(title, loc="left", fontsize=14, fontweight="bold", color=colour)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, lw=0.6)
    panel.margins(y=0.15)
    panel.locator_params(nbins=6)


def main() -> None:
    """Write huber.png beside this file."""
    sections = {s.split()[0]: s for s in huber.explain().split("\n\n")}
    gradient = sections["GRADIENT"].split("\n  where")[0]
    code = inspect.getsource(huber.function).rstrip().split("\n")
    derivation = "\n\n".join([sections["FORWARD"], sections["BACKWARD"], gradient]).split("\n")
    heights = [(len(lines) + 0.6) * LINE for lines in (code, derivation)]
    figure = Figure(figsize=(15, sum(heights) + 1.1), dpi=130, facecolor="white")
    layout = {"left": 0.01, "right": 0.99, "bottom": 0.06, "top": 1 - 0.4 / (sum(heights) + 1.1)}
    left, right = figure.add_gridspec(1, 2, width_ratios=[1.8, 1], wspace=0.08, **layout)
    cards = left.subgridspec(2, 1, height_ratios=heights, hspace=0.12).subplots()
    for panel, title, lines, height in zip(
        cards, ("You write", "lossforge derives"), (code, derivation), heights, strict=True
    ):
        card(panel, title, lines, height)
    error = np.linspace(-3, 3, 301)
    zero = np.zeros_like(error)
    value, slope = right.subgridspec(2, 1, hspace=0.22).subplots()
    plot(value, "value", error, huber(error, zero, reduction="none"), BLUE)
    plot(slope, "gradient", error, huber.grad(error, zero, reduction="sum"), VERMILION)
    slope.set_xlabel("prediction − target", fontsize=12, color=INK)
    figure.savefig(Path(__file__).with_name("huber.png"))


if __name__ == "__main__":
    main()
