"""Log-loss of the validation and test lines, sampled handwriting, and what a HyperLSTM does to its weights meanwhile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....data import load_handwriting
from ....nn import HyperLSTM
from ...tables import write_json
from ..recurrence import weight_changes
from .config import Evaluation
from .figures import draw
from .model import HandwritingModel
from .train import load, long_enough


@torch.no_grad()
def changes_over(model: HandwritingModel, line: Tensor) -> Tensor:
    """[4,T-1]: weight_changes of a HyperLSTM that reads a line [T,3]."""
    points = model.standardised(line.to(model.mean.device))
    return weight_changes(model(points.unsqueeze(1), return_scales=True)[2])


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate hypernetworks/handwriting`: evaluation.json, figures."""
    model, config, step = load(path, device)
    handwriting = load_handwriting(config.lines, data_root, config.split)
    out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    for name in ("validation", "test"):
        lines = long_enough(getattr(handwriting, name), config, device)[: settings.lines]
        about[f"{name}_lines"] = len(lines)
        if lines:  # the split of Graves has no test lines
            about[f"{name}_log_loss"] = model.mean_log_loss(lines)
            print(f"step {step}: {name} {about[f'{name}_log_loss']:.2f} nats a line, {len(lines)} lines")
    write_json(out / "evaluation.json", about)
    if not figures:
        return
    generator = torch.Generator().manual_seed(settings.seed)
    samples = model.sample(settings.samples, settings.sample_length, settings.bias, generator)
    changes = changes_over(model, samples[0]) if isinstance(model.recurrence, HyperLSTM) else None
    runs = [path.parent, *map(Path, settings.beside)]
    for name in figures:
        print(f"{name}: {draw(name, runs, out, samples, changes) or 'this cell has none'}")
