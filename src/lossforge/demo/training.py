"""Train one contender of a story, and remember how it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lossforge.demo.story import Contender, Story
from lossforge.demo.trainers import Trainer

LOOKS = 60
"""How often, about, the whole training set and the test set are looked at."""


@dataclass(frozen=True)
class Trained:
    """A contender after training."""

    name: str
    steps: np.ndarray
    """When it was looked at: the optimiser steps taken until then, 0 first."""
    losses: np.ndarray
    """The loss of all training samples at these times."""
    scores: np.ndarray
    """The story's first metric at these times."""
    prediction: np.ndarray
    """The network's outputs for the test samples at the end."""


def train(
    trainer: type[Trainer],
    story: Story,
    contender: Contender,
    steps: int,
    report: Callable[[int, float], None],
) -> Trained:
    """Train the story's network with one of its losses.

    Args:
        trainer: of a framework.
        story: data and network.
        contender: the loss.
        steps: the number of optimiser steps, at least 1.
        report: called with the steps taken since the last time, and the loss of all training samples.
    """
    plan = story.training
    network = trainer(plan.layers(), contender.loss, plan.rate)
    batches = plan.batches(len(story.features), steps)
    looks = np.unique(np.linspace(0, steps, min(LOOKS, steps) + 1).astype(int))
    losses, scores = [], []
    for before, now in zip([0, *looks], looks, strict=False):
        for rows in batches[before:now]:
            network.step(story.features[rows], [a[rows] for a in contender.arguments])
        prediction = network.predict(story.test_features)
        losses.append(float(contender.loss(network.predict(story.features), *contender.arguments)))
        scores.append(story.metrics[0].of(prediction))
        report(now - before, losses[-1])
    return Trained(contender.name, looks, np.array(losses), np.array(scores), prediction)
