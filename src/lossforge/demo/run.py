"""The order of events: derive, explain, verify, train, draw; story after story."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from lossforge.demo import dice, huber, weighted
from lossforge.demo.checking import Checked, check
from lossforge.demo.plots import plot_segmentation, plot_story
from lossforge.demo.report import Report
from lossforge.demo.story import Story
from lossforge.demo.trainers import Trainer, trainer
from lossforge.demo.training import Trained, train

CHECKED = 24
"""Entries of each gradient that are compared with differences in high precision."""


@dataclass(frozen=True)
class Result:
    """What came of one story."""

    story: Story
    checked: Checked
    ours: Trained
    baseline: Trained
    files: tuple[Path, ...]


def run(framework: str, folder: Path, console: Console | None, effort: float) -> tuple[Result, ...]:
    """The demo; see `lossforge.demo.main`."""
    start = time.monotonic()
    model = trainer(framework)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(console or Console(), framework)
    results = []
    for number, load in enumerate((huber.story, dice.story, weighted.story), start=1):
        story = load()
        report.begin(number, story)
        results.append(_tell(story, model, folder, report, effort))
    report.table([(r.story, r.ours, r.baseline) for r in results], time.monotonic() - start)
    return tuple(results)


def _tell(story: Story, model: type[Trainer], folder: Path, report: Report, effort: float) -> Result:
    text, curves, segmentation = (folder / f"{story.key}{end}" for end in (".txt", ".png", "-segmentation.png"))
    explanation = story.ours.loss.explain()
    text.write_text(explanation + "\n", encoding="utf-8")
    report.derived(explanation, text)
    checked = check(story.ours.loss, model.gradient, *_some(story))
    report.verified(checked)
    if story.refused is not None:
        report.refused(story.refused())
    steps = max(1, round(effort * story.training.steps))
    contenders = (story.ours, story.baseline)
    with report.training([c.name for c in contenders], steps) as advance:
        ours, baseline = (train(model, story, c, steps, partial(advance, c.name)) for c in contenders)
    plot_story(story, ours, baseline, curves)
    pictures = [curves]
    if story.picture is not None:
        plot_segmentation(story, story.picture, ours, baseline, segmentation)
        pictures.append(segmentation)
    report.results(story, ours, baseline, pictures)
    return Result(story, checked, ours, baseline, (text, *pictures))


def _some(story: Story) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random predictions, since a gradient must be right everywhere, for samples from all over the data."""
    rows = np.linspace(0, len(story.features) - 1, CHECKED).astype(int)
    prediction = np.random.default_rng(story.training.seed).normal(size=CHECKED)
    return prediction, [a[rows].astype(np.float64) for a in story.ours.arguments]
