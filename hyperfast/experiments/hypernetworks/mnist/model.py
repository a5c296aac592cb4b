"""Two convolutions of 7x7 and a linear layer; the second convolution's kernel is generated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ....nn import HyperConv2d, TileHypernetwork
from .config import Config

CHANNELS, KERNEL = 16, 7
_STD = 0.01


class ConvNet(nn.Module):
    """images [N,1,28,28] -> logits [N,10]: 7x7 convolution of 16 channels, ReLU, 2x2 max-pool, twice; then linear.

    config.net == "hyper": the second kernel, 7x7x16x16, is TileHypernetwork's of one embedding of N_z elements.

    Initialised as the author's code has it: kernels, or the hypernetwork and the embedding, normal with 0.01, truncated
    at two standard deviations; the linear layer orthogonal; biases 0.
    """

    second: nn.Conv2d | HyperConv2d

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, CHANNELS, KERNEL, padding="same")
        if config.net == "hyper":
            generator = TileHypernetwork(config.embedding, config.hidden, (CHANNELS, CHANNELS), KERNEL, init="paper")
            self.second = HyperConv2d(CHANNELS, CHANNELS, generator, padding="same")
        else:
            self.second = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding="same")
        self.last = nn.Linear(7 * 7 * CHANNELS, 10)
        nn.init.orthogonal_(self.last.weight)
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(value)
            elif name in ("first.weight", "second.weight"):
                nn.init.trunc_normal_(value, std=_STD, a=-2 * _STD, b=2 * _STD)

    def forward(self, images: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.first(images)), 2)
        h = F.max_pool2d(F.relu(self.second(h)), 2)
        return self.last(h.flatten(1))
