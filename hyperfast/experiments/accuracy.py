"""Accuracies of single generated networks and of ensembles of them (Deutsch, section 4.2; HyperGAN, table 4)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..data import Labelled
from ..nn import TargetNet
from ..ops.ensemble import ensemble_sums
from .experiment import Trained
from .networks import NETWORKS_AT_ONCE, outputs
from .tables import write_csv
from .training import ProgressBar


class Ensembles(Protocol):
    """The settings of an evaluation that are read here."""

    @property
    def networks(self) -> int:
        """Networks generated."""

    @property
    def ensemble_sizes(self) -> tuple[int, ...]:
        """Networks in an ensemble; sizes above `networks` are left out."""

    @property
    def repeats(self) -> int:
        """Disjoint ensembles of each size, at most; as many as there are networks for."""


@dataclass(frozen=True)
class Scores:
    """What one set of images says."""

    member_accuracy: Tensor
    """[M] float64, of every network alone."""
    vote: dict[int, list[float]]
    """size -> accuracies of its ensembles by majority vote; ties go to the smallest label."""
    mean_prob: dict[int, list[float]]
    """size -> accuracies of the same ensembles by the largest mean probability."""


@torch.no_grad()
def score(
    net: TargetNet,
    sampler: Callable[[Tensor], Tensor],
    data: Labelled,
    settings: Ensembles,
    progress: Callable[[int], None] = lambda done: None,
) -> Scores:
    """One pass over the networks: alone, and in disjoint ensembles of members i*size ... (i+1)*size - 1."""
    sizes = [size for size in settings.ensemble_sizes if size <= settings.networks]
    ensembles = {size: _Ensembles(size, settings.repeats, data.labels) for size in sizes}
    # Not a list of small tensors: each would lie behind the large ones of its turn, and malloc could not reuse those.
    single = torch.empty(settings.networks, dtype=torch.float64)
    for start in range(0, settings.networks, NETWORKS_AT_ONCE):
        indices = torch.arange(start, min(start + NETWORKS_AT_ONCE, settings.networks))
        logits = outputs(net, sampler(indices), data.images)
        single[start : start + len(indices)] = (logits.argmax(-1) == data.labels).double().mean(1).cpu()
        for ensemble in ensembles.values():
            ensemble.add(logits)
        progress(start + len(indices))
    return Scores(
        single,
        {size: e.vote for size, e in ensembles.items()},
        {size: e.mean_prob for size, e in ensembles.items()},
    )


class _Ensembles:
    """Ensembles of one size, filled in the members' order: sums over the members of the one under way."""

    def __init__(self, size: int, repeats: int, labels: Tensor) -> None:
        self.size, self.repeats, self.labels = size, repeats, labels
        self.members = 0
        self.prob: Tensor | None = None
        self.votes: Tensor | None = None
        self.vote: list[float] = []
        self.mean_prob: list[float] = []

    def add(self, logits: Tensor) -> None:
        """logits [m,N,C] of the next m members."""
        while len(logits) and len(self.vote) < self.repeats:
            some, logits = logits.tensor_split([self.size - self.members])
            sums = ensemble_sums(some.contiguous(), prob=True, entropy=False, votes=True, choice=False)
            assert sums.prob is not None and sums.votes is not None  # noqa: PT018
            self.prob = sums.prob if self.prob is None else self.prob + sums.prob
            self.votes = sums.votes if self.votes is None else self.votes + sums.votes
            self.members += len(some)
            if self.members == self.size:
                self.vote.append(self._accuracy(self.votes))  # argmax takes the first of equal counts
                self.mean_prob.append(self._accuracy(self.prob))
                self.members, self.prob, self.votes = 0, None, None

    def _accuracy(self, sums: Tensor) -> float:
        return (sums.argmax(1) == self.labels).double().mean().item()


def run(trained: Trained, sets: Mapping[str, Labelled], settings: Ensembles, out: Path) -> dict[str, Scores]:
    """Scores on each set of images; writes accuracies.csv and ensembles.csv into `out`, and prints a table."""
    scores: dict[str, Scores] = {}
    with ProgressBar("accuracies", len(sets) * settings.networks) as bar:
        for name, data in sets.items():
            show = partial(_advance, bar, len(scores) * settings.networks)
            scores[name] = score(trained.net, trained.sampler, data, settings, show)
    rows = summary(scores)
    write_csv(out / "ensembles.csv", rows)
    members = zip(*(s.member_accuracy.tolist() for s in scores.values()), strict=True)
    write_csv(
        out / "accuracies.csv",
        [dict(zip(("network", *scores), (i, *row), strict=True)) for i, row in enumerate(members)],
    )
    _print(rows)
    return scores


def _advance(bar: ProgressBar, before: int, done: int) -> None:
    bar.update(before + done)


def summary(scores: dict[str, Scores]) -> list[dict[str, str | int | float]]:
    """One row per set of images, size and way of deciding; size 1 is a network alone."""
    rows: list[dict[str, str | int | float]] = []
    for name, found in scores.items():
        rows.append(_row(name, 1, "alone", found.member_accuracy.tolist()))
        for size in found.vote:
            rows.append(_row(name, size, "majority vote", found.vote[size]))
            rows.append(_row(name, size, "mean probability", found.mean_prob[size]))
    return rows


def _row(name: str, size: int, how: str, found: Sequence[float]) -> dict[str, str | int | float]:
    return {
        "set": name, "networks": size, "decision": how, "repeats": len(found),
        "mean": statistics.fmean(found), "lowest": min(found), "highest": max(found),
    }  # fmt: skip


def _print(rows: list[dict[str, str | int | float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:.2%}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
