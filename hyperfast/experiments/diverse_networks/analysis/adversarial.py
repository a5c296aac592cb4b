"""Adversarial examples against one network and against an ensemble (Deutsch, section 4.2.3, figure 8).

An image x of label y, attacked through a network theta of its own that classifies it correctly; y' != y is uniform:

    x'(k) = x + k/255 * sign(d p(y' | x, theta) / dx)     k in levels; not clipped

It succeeds against theta where theta's label of x' is not y, and against a fresh ensemble where its majority's is not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .... import ensemble
from ....data import Labelled
from ....nn import TargetNet
from ...attacks import ascent
from ...experiment import Trained
from ...figures import MANY, ONE, figure, save_png
from ...tables import write_csv, write_json
from ...training import ProgressBar, generator_at
from .config import Evaluation

TOLD = (0.1, 0.2)  # perturbation sizes at which adversarial.json tells the success
_IMAGES_AT_ONCE = 32


def run(trained: Trained, data: Labelled, settings: Evaluation, out: Path) -> list[Path]:
    """adversarial.png, adversarial.csv, and adversarial.json with the success at 0.1 and 0.2 of the images' range.

    Where the networks classify no image correctly there is nothing to attack: adversarial.json says so alone.
    """
    data = data[: settings.adversarial_images]
    single = torch.zeros(len(settings.adversarial_levels), dtype=torch.int64)
    voted, attacked = torch.zeros_like(single), 0
    with ProgressBar("adversarial", len(data)) as bar:
        for start in range(0, len(data), _IMAGES_AT_ONCE):
            some = data[start : start + _IMAGES_AT_ONCE]
            for fooled, outvoted in attack(trained, some, start, settings):
                single, voted, attacked = single + fooled, voted + outvoted, attacked + 1
            bar.update(start + len(some))
    counts = {"images": len(data), "attacked": attacked, "ensemble_of": settings.adversarial_networks}
    if not attacked:
        return [write_json(out / "adversarial.json", counts)]
    curves = {"single": single.numpy() / attacked, "ensemble": voted.numpy() / attacked}
    sizes = np.array(settings.adversarial_levels) / 255
    rows = [
        {"level": k, "epsilon": k / 255, "single": a, "ensemble": b}
        for k, a, b in zip(
            settings.adversarial_levels, curves["single"].tolist(), curves["ensemble"].tolist(), strict=True
        )
    ]
    return [
        _draw(sizes, curves, settings.adversarial_networks, out / "adversarial.png"),
        write_csv(out / "adversarial.csv", rows),
        write_json(out / "adversarial.json", counts | summary(sizes, curves)),
    ]


def summary(sizes: np.ndarray, curves: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Success at each of TOLD that the sizes reach, between two of them on the straight line."""
    reached = [size for size in TOLD if sizes[0] <= size <= sizes[-1]]
    return {
        name: {f"{size}": float(np.interp(size, sizes, curve)) for size in reached} for name, curve in curves.items()
    }


def attack(trained: Trained, data: Labelled, first: int, settings: Evaluation) -> list[tuple[Tensor, Tensor]]:
    """(fooled, outvoted), bool [levels] each, of every image that its network classifies correctly.

    Image first + i is attacked through member (first + i) * (1 + E); the E members after it vote.
    """
    members = 1 + settings.adversarial_networks
    numbers = torch.arange(first, first + len(data))
    with torch.no_grad():
        theta = trained.sampler(numbers * members)
    signs, right = directions(trained.net, theta, data, numbers, settings.seed)
    levels = torch.tensor(settings.adversarial_levels, dtype=torch.float32, device=data.images.device) / 255
    found = []
    for i in torch.nonzero(right).flatten().tolist():
        images = data.images[i] + levels[:, None, None, None] * signs[i]  # [levels,1,28,28]
        label = data.labels[i]
        with torch.no_grad():
            fooled = trained.net(images, theta[i : i + 1])[0].argmax(-1) != label
            voters = trained.sampler(torch.arange(int(numbers[i]) * members + 1, (int(numbers[i]) + 1) * members))
        votes = ensemble.predict(trained.net, images, voters, ("votes",)).votes
        found.append((fooled.cpu(), (votes.argmax(1) != label).cpu()))
    return found


def directions(net: TargetNet, theta: Tensor, data: Labelled, numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """sign of d p(y'|x)/dx [N,1,28,28] of image i under network theta[i], and whether that network is right, bool [N].

    y' of image number n depends on (seed, n) alone.
    """
    offsets = [int(torch.randint(1, 10, (), generator=generator_at(seed, int(n)))) for n in numbers]
    targets = (data.labels + torch.tensor(offsets, device=data.labels.device)) % 10
    right = torch.empty_like(data.labels, dtype=torch.bool)

    def wanted(x: Tensor) -> Tensor:
        logits = net(x, theta)[:, 0]
        right.copy_(logits.detach().argmax(1) == data.labels)
        return logits.softmax(1).gather(1, targets.unsqueeze(1))

    return ascent(wanted, data.images.unsqueeze(1))[:, 0].sign(), right


def _draw(sizes: np.ndarray, curves: dict[str, np.ndarray], networks: int, path: Path) -> Path:
    drawn, axes = figure(5.0, 3.2)
    axes.plot(sizes, curves["single"], "--", color=MANY, label="the attacked network")
    axes.plot(sizes, curves["ensemble"], "-", color=ONE, label=f"vote of {networks} fresh networks")
    axes.set(xlabel="perturbation, share of the images' range", ylabel="success of the attack", ylim=(0, None))
    axes.legend()
    save_png(drawn, path)
    return path
