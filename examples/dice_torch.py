"""Dice in a PyTorch training loop: a small U-Net finds the vessels of a retina.

    pip install "lossforge[torch,demo]"
    python examples/dice_torch.py

The photograph ships with scikit-image. Patches of its upper half train the network, its lower half tests it.
"""

import numpy as np
import torch
from skimage.filters import gaussian
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

import lossforge as lf
from lossforge.demo.retina import retina

SIDE = 64
"""Pixels along each side of a patch."""


# The signature names the axes: one loss for each image, which has any number of spatial axes.
@lf.loss("image *space, image *space -> image")
def dice(logits, true, *, smooth=1.0):
    """One minus the overlap of prediction and truth; `smooth` speaks for patches without any vessel."""
    pred = lf.sigmoid(logits)
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


class SmallUNet(nn.Module):
    """Two scales: what is found at half the resolution joins what is seen at full resolution."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.fine = _two_convolutions(3, channels)
        self.coarse = _two_convolutions(channels, 2 * channels)
        self.joined = _two_convolutions(3 * channels, channels)
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(image, 3, height, width) to (image, height, width); height and width are even."""
        fine = self.fine(image)
        coarse = self.coarse(max_pool2d(fine, 2))
        both = torch.cat([fine, interpolate(coarse, scale_factor=2)], dim=1)
        return self.logits(self.joined(both))[:, 0]


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()),
    )


def halves() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The upper and the lower half: contrasts (3, height, width), and the vessels (height, width)."""
    image, vessels, eye = retina()
    contrast = (image - gaussian(image, 12, channel_axis=-1)) * eye[..., None]
    pixels = torch.tensor(contrast / contrast[eye].std(axis=0), dtype=torch.float32).permute(2, 0, 1)
    truth = torch.tensor(vessels, dtype=torch.float32)
    return (pixels[:, :352, :704], truth[:352, :704]), (pixels[:, 352:704, :704], truth[352:704, :704])


def patches(image: Tensor, truth: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Patches from random places, turned over at random."""
    height, width = truth.shape
    images, truths = [], []
    for _ in range(count):
        top, left = rng.integers(0, height - SIDE), rng.integers(0, width - SIDE)
        part = (slice(top, top + SIDE), slice(left, left + SIDE))
        flipped = [-1] if rng.random() < 0.5 else []
        images.append(image[:, *part].flip(flipped))
        truths.append(truth[part].flip(flipped))
    return torch.stack(images), torch.stack(truths)


@torch.no_grad()
def score(network: nn.Module, image: Tensor, truth: Tensor) -> float:
    """The Dice coefficient of the pixels whose probability is above one half."""
    found = network(image[None])[0] > 0
    return float(2 * (found * truth).sum() / (found.sum() + truth.sum()))


def main(epochs: int = 6, steps: int = 40, batch: int = 4, seed: int = 0) -> tuple[float, float]:
    """Train, and print the Dice coefficient of the lower half before and after; also returned."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    upper, lower = halves()
    network = SmallUNet()
    criterion = dice.torch(smooth=1.0)  # an nn.Module
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    before = score(network, *lower)
    print(f"{criterion}\nbefore: Dice coefficient {before:.3f} on the lower half")
    for epoch in range(1, epochs + 1):
        losses = []
        for _ in range(steps):
            images, truths = patches(*upper, batch, rng)
            loss = criterion(network(images), truths)
            optimiser.zero_grad()
            loss.backward()  # the derived gradient, from here on PyTorch's own
            optimiser.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}")
    after = score(network, *lower)
    print(f"after:  Dice coefficient {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
