"""Cross-entropies of test digits beside what points drawn from the digits themselves reach, and the figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ....models import BranchedHypernetwork
from ....nn import TargetNet
from ...tables import write_json
from .config import Evaluation
from .figures import Drawn, draw
from .train import circle, cross_entropy, distribution, load, pixels, read, scores


def drawn_from(pictures: Tensor, points: int, seed: int) -> Tensor:
    """[B,1,S,S] -> [B,n,2]: points drawn from each picture's brightness, even within a pixel."""
    side = pictures.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    weight = distribution(pictures).cpu() + 1e-12  # a black picture is drawn from evenly
    picks = torch.multinomial(weight, points, replacement=True, generator=generator)
    jitter = (torch.rand(*picks.shape, 2, generator=generator) - 0.5) / side
    return (pixels(side, torch.device("cpu"))[picks] + jitter).to(pictures.device)


@torch.no_grad()
def shapes(net: TargetNet, hypernetwork: BranchedHypernetwork, pictures: Tensor, settings: Evaluation) -> Drawn:
    """What the figures show: settings.shapes pictures, and settings.pairs interpolations between the next ones."""
    few = pictures[: settings.shapes + 2 * settings.pairs]
    theta = hypernetwork(few)
    ends = theta[settings.shapes :]
    first, second = ends[: len(ends) // 2], ends[len(ends) // 2 : len(ends) // 2 * 2]
    share = torch.linspace(0, 1, settings.between, device=theta.device).view(1, -1, 1)
    between = first.unsqueeze(1) * (1 - share) + second.unsqueeze(1) * share  # [pairs,between,P]
    dots = circle(torch.arange(settings.points, device=theta.device) / settings.points)
    steps = circle(torch.arange(settings.outline + 1, device=theta.device) / settings.outline)
    return Drawn(
        few[: settings.shapes, 0].cpu(),
        net(dots, theta[: settings.shapes]).cpu(),
        net(steps, theta[: settings.shapes]).cpu(),
        net(dots, between.flatten(0, 1)).unflatten(0, between.shape[:2]).cpu(),
    )


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate functional_images/shapes`: evaluation.json, figures."""
    net, hypernetwork, config, step = load(path, device)
    test = read(config, data_root).test[: settings.pictures].to(device)
    reached = scores(config, net, hypernetwork, test)
    own = torch.cat([cross_entropy(p, drawn_from(p, config.points, i), config.sigma)
                     for i, p in enumerate(test.split(256))])  # fmt: skip
    about = {
        "checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config),
        "parameters": sum(p.numel() for p in hypernetwork.parameters()), "pictures": len(test),
        "cross_entropy": reached.mean().item(), "cross_entropy_worst": reached.max().item(),
        "cross_entropy_of_points_drawn_from_the_picture": own.mean().item(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", about)
    print(
        f"step {step}: cross-entropy {about['cross_entropy']:.3f} nats over {len(test)} test pictures; of {config.points} "
        f"points drawn from the picture itself {about['cross_entropy_of_points_drawn_from_the_picture']:.3f}"
    )
    if figures:
        print("\n".join(map(str, draw(figures, shapes(net, hypernetwork, test, settings), path.parent, out))))
