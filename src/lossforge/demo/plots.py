"""The demo's pictures: value and gradient against the prediction, the loss in training, the segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from lossforge.demo.story import Picture, Story
from lossforge.demo.training import Trained

# Colours that colour-blind people can tell apart (Okabe & Ito, Color Universal Design, 2008).
BLUE, ORANGE, SKY, VERMILION, INK, GREY = "#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#222222", "#8C8C8C"
OURS = (BLUE, VERMILION)
BASELINE: dict[str, Any] = {"color": GREY, "lw": 1.6, "ls": (0, (5, 3))}


def plot_story(story: Story, ours: Trained, baseline: Trained, path: Path) -> None:
    """Four panels: value and gradient against the prediction, loss and metric against the step."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, hspace=0.06, wspace=0.04)
    figure = Figure(figsize=(11, 7.6), dpi=150, layout=layout)
    figure.suptitle(story.title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
    (value, slope), (loss, metric) = figure.subplots(2, 2)
    _curves(story, value, slope)
    _training(story, loss, metric, ours, baseline)
    figure.savefig(path)


def plot_segmentation(story: Story, picture: Picture, ours: Trained, baseline: Trained, path: Path) -> None:
    """The image, its label, and where each prediction is right and wrong."""
    height, width = picture.label.shape
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.06, wspace=0, hspace=0)
    figure = Figure(figsize=(12, 13.4 * height / width), dpi=150, layout=layout)
    panels = figure.subplots(2, 2).ravel()
    black = np.zeros_like(picture.image)
    label = np.where((picture.label & picture.where)[..., None], 1.0, black)
    shown = [("the photograph (lower half)", picture.image), ("vessels, as labelled", label)]
    for trained in (ours, baseline):
        found = np.zeros_like(picture.label)
        found[picture.where] = trained.prediction > 0
        score = f"{story.metrics[0].name} {story.metrics[0].show(trained.scores[-1])}"
        shown.append((f"trained with {trained.name}: {score}", _compared(found, picture)))
    for panel, (title, image) in zip(panels, shown, strict=True):
        panel.imshow(image)
        panel.set_title(title, loc="left", fontsize=12, color=INK)
        panel.set_axis_off()
    keys = [
        Patch(facecolor="white", edgecolor=GREY, label="found"),
        Patch(facecolor=ORANGE, label="missed"),
        Patch(facecolor=SKY, label="false alarm"),
    ]
    figure.legend(handles=keys, loc="outside lower right", ncols=3, frameon=False, fontsize=11)
    figure.savefig(path)


def _compared(found: np.ndarray, picture: Picture) -> np.ndarray:
    true = picture.label & picture.where
    colours = np.zeros((*found.shape, 3))
    for which, colour in ((found & true, "#FFFFFF"), (~found & true, ORANGE), (found & ~true, SKY)):
        colours[which] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return colours


def _curves(story: Story, value: Axes, slope: Axes) -> None:
    mine = iter(OURS)
    labelled = set()
    for curve in story.curves:
        style = BASELINE if curve.baseline else _style(next(mine))
        value.plot(curve.prediction, curve.value, label=None if curve.name in labelled else curve.name, **style)
        slope.plot(curve.prediction, curve.slope, **style)
        labelled.add(curve.name)
    for panel, title in ((value, "Value"), (slope, "Gradient with respect to the prediction")):
        _plain(panel, title, story.axis)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high)
        for x, name in story.marks:
            panel.axvline(x, color=INK, lw=0.8, ls=":", zorder=0)
            panel.annotate(name, (x, high), (3, -3), textcoords="offset points", va="top", color=INK, fontsize=11)
    slope.axhline(0, color=INK, lw=0.6, zorder=0)
    value.legend(framealpha=1, edgecolor="none", fontsize=10)


def _training(story: Story, loss: Axes, metric: Axes, ours: Trained, baseline: Trained) -> None:
    sides = ("bottom", "top") if ours.scores[-1] > baseline.scores[-1] else ("top", "bottom")
    for trained, style, side in zip((ours, baseline), (_style(BLUE), BASELINE), sides, strict=True):
        loss.plot(trained.steps, trained.losses / trained.losses[0], label=trained.name, **style)
        metric.plot(trained.steps, trained.scores, **style)
        end = story.metrics[0].show(trained.scores[-1])
        metric.annotate(
            end, (trained.steps[-1], trained.scores[-1]), (6, 0), textcoords="offset points", va=side,
            color=style["color"], fontsize=11, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    _plain(loss, "Loss on the training data (1 at the start)", "step")
    _plain(metric, f"On the test data: {story.metrics[0].name}", "step")
    for panel in (loss, metric):
        panel.set_ylim(bottom=0)
    loss.legend(framealpha=1, edgecolor="none", fontsize=10)


def _style(colour: str) -> dict[str, Any]:
    return {"color": colour, "lw": 2.6}


def _plain(panel: Axes, title: str, label: str) -> None:
    panel.set_title(title, loc="left", fontsize=12, color=INK)
    panel.set_xlabel(label, fontsize=11, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=10)
    panel.grid(alpha=0.25, lw=0.6)
