"""Row 20: training on two ranks has the gradients of training on one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from made_up import digits
from torch import nn

from hyperfast.models import MultiplicativeFlows, deutsch_hypernetwork, targets
from hyperfast.nn import TargetNet
from hyperfast.reference.gauge import fix_gauge

NETWORKS, IMAGES, RANKS = 8, 4, 2


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


def on_one_rank_of_two(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    model = Accuracy(kind)
    # The auxiliary distribution of mnfg has no part in the networks.
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=kind == "mnfg")
    parallel(*(t.chunk(RANKS)[rank] for t in batch(model))).backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["mnist", "mnfg"])
def test_20_two_ranks_have_the_gradients_of_one(kind, tmp_path):
    mp.spawn(on_one_rank_of_two, (str(tmp_path), kind), RANKS)
    model = Accuracy(kind)
    model(*batch(model)).backward()
    whole = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(whole) > 10
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt")
        difference = torch.cat([(found[n] - g).flatten() for n, g in whole.items()]).norm()
        assert difference <= 1e-6 * torch.cat([g.flatten() for g in whole.values()]).norm()
