"""Row 20: training on two ranks has the gradients of training on one."""

import pytest
import torch
import torch.nn.functional as F
from made_up import digits
from ranks import on_ranks
from torch import nn

from hyperfast.models import MultiplicativeFlows, deutsch_hypernetwork, targets
from hyperfast.nn import TargetNet
from hyperfast.reference.gauge import fix_gauge

NETWORKS, IMAGES = 8, 4


class Accuracy(nn.Module):
    """The networks' cross-entropy, from noise and each network's own images."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = TargetNet(targets.deutsch_mnist())
        # eval: batch norm's statistics over a batch are of the rank's own noise.
        self.generator = {"mnist": deutsch_hypernetwork, "mnfg": MultiplicativeFlows}[kind](self.net).eval()

    def forward(self, noise, images, labels):
        theta = fix_gauge(self.generator(noise), self.net.plan)
        return F.cross_entropy(self.net(images, theta).flatten(0, 1), labels.flatten())


def batch(model):
    draws = torch.Generator().manual_seed(1)
    noise = torch.randn(NETWORKS, model.generator.noise_size, generator=draws)
    pixels, labels = digits(NETWORKS * IMAGES, 3)
    images = torch.from_numpy(pixels).reshape(NETWORKS, IMAGES, 1, 28, 28).float() / 255
    return noise, images, torch.from_numpy(labels).long().reshape(NETWORKS, IMAGES)


def gradients_of_rank(rank: int, world: int, kind: str) -> dict[str, torch.Tensor | None]:
    model = Accuracy(kind)
    # The auxiliary distribution of mnfg has no part in the networks.
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=kind == "mnfg")
    parallel(*(t.chunk(world)[rank] for t in batch(model))).backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["mnist", "mnfg"])
def test_20_two_ranks_have_the_gradients_of_one(kind, tmp_path):
    ranks = on_ranks(gradients_of_rank, 2, tmp_path, kind)
    model = Accuracy(kind)
    model(*batch(model)).backward()
    whole = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(whole) > 10
    for found in ranks:
        difference = torch.cat([(found[n] - g).flatten() for n, g in whole.items()]).norm()
        assert difference <= 1e-6 * torch.cat([g.flatten() for g in whole.values()]).norm()
