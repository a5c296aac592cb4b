"""What the demo measures: members and ensembles on held-out digits, and the fused ensemble's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ensemble
from ...data import Digits
from ...models import FilterHypernetwork
from ...nn import TargetNet

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies on the held-out digits, seconds per evaluation of the whole ensemble, and some weights."""

    member_accuracy: Tensor
    ensemble_accuracy: float
    vote_accuracy: float
    by_size: dict[int, tuple[float, float, float]]
    """members -> (mean, lowest, highest) ensemble accuracy over disjoint ensembles of that size."""
    disagreement: float
    seconds: dict[str, float]
    """ours, and two ways of PyTorch: medians of interleaved runs."""
    filters: Tensor
    """[networks, hidden, 8, 8], the first layer of some generated networks."""
    inputs: int
    largest_difference: float
    """Between the fused mean probability and PyTorch's."""


@torch.no_grad()
def evaluate(net: TargetNet, hypernetwork: FilterHypernetwork, data: Digits, members: int) -> Evaluation:
    """Samples `members` networks and evaluates them alone and together."""
    images, labels = data.test_images, data.test_labels
    theta = hypernetwork.sampler(seed=1)(torch.arange(members))
    wanted = ("mean_prob", "votes", "disagreement", "member_accuracy")
    whole = ensemble.predict(net, images, theta, wanted, targets=labels)
    accuracy = lambda scores: (scores.argmax(1) == labels).double().mean().item()
    by_size = {}
    for size in [s for s in SIZES if s <= members]:
        repeats = min(members // size, 20)
        parts = [ensemble.predict(net, images, theta[i * size : (i + 1) * size]).mean_prob for i in range(repeats)]
        found = [accuracy(p) for p in parts]
        by_size[size] = (statistics.mean(found), min(found), max(found))
    seconds, difference = compare(net, images, theta)
    return Evaluation(
        member_accuracy=whole.member_accuracy,
        ensemble_accuracy=accuracy(whole.mean_prob),
        vote_accuracy=accuracy(whole.votes),
        by_size=by_size,
        disagreement=whole.disagreement.mean().item(),
        seconds=seconds,
        filters=net.unflatten(theta[:4])[net.layout[0][0]].unflatten(2, (8, 8)),
        inputs=len(labels),
        largest_difference=difference,
    )


def compare(net: TargetNet, images: Tensor, theta: Tensor, turns: int = 5) -> tuple[dict[str, float], float]:
    """Seconds for the mean probability of all members: fused, a loop over networks, and vmap; in turns."""
    weights = net.unflatten(theta)
    first, first_bias, last, last_bias = (weights[name] for name, _, _ in net.layout)

    def one(w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(images, w, b)), v, c)

    def loop() -> Tensor:
        total = torch.zeros(())
        for m in range(len(theta)):
            total = total + one(first[m], first_bias[m], last[m], last_bias[m]).softmax(-1)
        return total / len(theta)

    ways: dict[str, Callable[[], Tensor]] = {
        "hyperfast": lambda: ensemble.predict(net, images, theta).mean_prob,
        "PyTorch, loop": loop,
        "PyTorch, vmap": lambda: torch.func.vmap(one)(first, first_bias, last, last_bias).softmax(-1).mean(0),
    }
    results = {name: way() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begin)
    difference = (results["hyperfast"] - results["PyTorch, vmap"]).abs().max().item()
    return {name: statistics.median(t) for name, t in times.items()}, difference
