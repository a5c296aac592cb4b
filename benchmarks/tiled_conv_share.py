"""What generated kernels cost in a network: their part of a training step, and of the inference of one image.

    python -m hyperfast.benchmarks.tiled_conv_share [--json FILE]

WRN 40-1 and 40-2 with all kernels generated (Ha, Dai and Le, section 4.2): assembling them with the penalty and
backward beside a whole training step on 128 images, and assembling them beside a whole forward of one image. Both are
timed in turn, and a share is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperfast.data import Labelled
from hyperfast.experiments.hypernetworks.wrn.config import PRESETS
from hyperfast.experiments.hypernetworks.wrn.train import CLASSIFICATION
from hyperfast.experiments.tables import write_json
from hyperfast.nn import HyperConv2d

from .run import environment
from .timing import seconds

IMAGES = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = [row for width in (1, 2) for row in shares(width, device, options.turns)]
    for row in rows:
        print(f"{row['case']}: {row['share']:.2%} of {row['seconds'] * 1e3:.0f} ms")
    if options.json:
        write_json(options.json, rows)


def shares(width: int, device: torch.device, turns: int) -> list[dict[str, Any]]:
    """Rows of the result: a training step's, an inference's."""
    config = replace(PRESETS["paper"], width=width, batch=IMAGES)
    model, optimizer = CLASSIFICATION.build(config, device)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draws)
    batch = Labelled(images, torch.randint(0, 10, (IMAGES,), generator=draws)).to(device)
    network, one = model.network, batch.images[:1].float() / 255
    generator = network.generator
    zs = [module.embedding for module in network.modules() if isinstance(module, HyperConv2d)]
    parameters = [*zs, *generator.parameters()]
    kernels, penalty = generator.assemble(zs, penalty=True)
    gradients = [torch.randn_like(kernel) for kernel in kernels]
    ones = torch.ones_like(penalty)

    def assemble_and_backward() -> None:
        kernels, penalty = generator.assemble(zs, penalty=True)
        torch.autograd.grad([*kernels, penalty], parameters, [*gradients, ones])

    @torch.no_grad()
    def assemble() -> None:
        generator.assemble(zs)

    @torch.no_grad()
    def infer() -> None:
        network(one)

    def step() -> None:
        CLASSIFICATION.train_step(config, model, optimizer, batch, 0)

    where = environment(device)
    step_row = _share(step, assemble_and_backward, device, turns)
    network.eval()
    inference_row = _share(infer, assemble, device, 4 * turns)
    return [
        {"case": f"WRN 40-{width}, training step, {IMAGES} images", **step_row, **where},
        {"case": f"WRN 40-{width}, inference, 1 image", **inference_row, **where},
    ]


def _share(whole: Callable[[], None], part: Callable[[], None], device: torch.device, turns: int) -> dict[str, float]:
    whole(), part()
    times = [(seconds(part, device), seconds(whole, device)) for _ in range(turns)]
    return {
        "share": statistics.median(a / b for a, b in times),
        "seconds": statistics.median(b for _, b in times),
        "seconds_of_part": statistics.median(a for a, _ in times),
    }


if __name__ == "__main__":
    main()
