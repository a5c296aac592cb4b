"""The network of a config, on standardised pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....models import WideResNet
from ....nn import TileHypernetwork
from .config import Config


class Classifier(nn.Module):
    """images [N,3,H,W], float32 in [0, 1] -> logits [N,10] of `network`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)
        generator = TileHypernetwork(config.embedding, config.hidden) if config.net == "hyper" else None
        self.network = WideResNet(config.width, config.blocks, generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_penalty(images)[0]

    def with_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, the sum of the squares of all kernels' elements [])."""
        return self.network.with_penalty((images - self.mean) / self.std)
