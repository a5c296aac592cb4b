"""What predict() keeps of the members for one batch of inputs: sums over members, in float64."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .ops.ensemble import ensemble_sums

CLASSIFICATION = ("mean_prob", "votes", "entropy", "disagreement")
REGRESSION = ("mean", "var")
REDUCTIONS = (*CLASSIFICATION, *REGRESSION, "member_accuracy")


class Sums:
    """Sums over members start .. stop of `total` for N inputs.

    values: prob [N,C], sum of the members' softmax; entropy [N], of their entropies; votes [N,C] int64; mean and
    squares [N,O], mean of the outputs and sum of their squared deviations from it; correct [M] int64, inputs of `labels`
    that a member classifies rightly. What the reductions do not need is left out. dtype: of the inputs.
    """

    def __init__(self, reduce: tuple[str, ...], labels: Tensor | None, total: int, dtype: torch.dtype) -> None:
        self.reduce, self.labels, self.total, self.dtype = reduce, labels, total, dtype
        self.members = 0
        self.values: dict[str, Tensor] = {}

    def _wants(self, *names: str) -> bool:
        return any(name in self.reduce for name in names)

    def add(self, y: Tensor, start: int) -> None:
        """y [m,N,C]: outputs of members start .. start + m."""
        if y.dim() != 3 and self._wants(*CLASSIFICATION, "member_accuracy"):
            raise ValueError(f"classification needs outputs [M,N,C]; the networks give {tuple(y.shape)}")
        wanted = {
            "prob": self._wants("mean_prob", "entropy", "disagreement"),
            "entropy": self._wants("disagreement"),
            "votes": self._wants("votes"),
            "choice": self._wants("member_accuracy"),
        }
        if any(wanted.values()):
            sums = ensemble_sums(y, **wanted)
            for name, more in (("prob", sums.prob), ("entropy", sums.entropy), ("votes", sums.votes)):
                if more is not None:
                    self.values[name] = self.values[name].add_(more) if name in self.values else more
            if sums.choice is not None and self.labels is not None:
                correct = self.values.setdefault("correct", sums.choice.new_zeros(self.total))
                correct[start : start + len(y)] += sums.choice.eq(self.labels).sum(1)
        if self._wants(*REGRESSION):
            self._add_moments(y.double())
        self.members += len(y)

    def _add_moments(self, y: Tensor) -> None:
        """Chan's update, so that no digits cancel."""
        if "mean" not in self.values:
            self.values |= {"mean": y.new_zeros(y.shape[1:]), "squares": y.new_zeros(y.shape[1:])}
        if not len(y):
            return
        mean, both = y.mean(0), self.members + len(y)
        delta = mean - self.values["mean"]
        self.values["squares"] += (y - mean).square_().sum(0) + delta.square() * (self.members * len(y) / both)
        self.values["mean"] += delta * (len(y) / both)

    def of_all_ranks(self, group: dist.ProcessGroup) -> None:
        """Becomes the sums over the members of every rank, which call this together."""
        for name in ("prob", "entropy", "votes", "correct"):
            if name in self.values:
                dist.all_reduce(self.values[name], group=group)
        if "mean" in self.values:
            own = self.values["mean"]
            mean = own * (self.members / self.total)
            dist.all_reduce(mean, group=group)
            self.values["squares"] += self.members * (own - mean).square()
            dist.all_reduce(self.values["squares"], group=group)
            self.values["mean"] = mean
        self.members = self.total

    def fields(self) -> dict[str, Tensor]:
        """The reductions but member_accuracy, once all members were added; var is NaN for one member, as torch.var."""
        v, dtype = self.values, torch.float64 if self.dtype == torch.float64 else torch.float32
        fields: dict[str, Tensor] = {}
        if "prob" in v:
            prob = v["prob"] / self.total
            entropy = torch.special.entr(prob).sum(-1)
            fields |= {"mean_prob": prob.to(dtype), "entropy": entropy.to(dtype)}
            if "entropy" in v:
                fields["disagreement"] = (entropy - v["entropy"] / self.total).clamp_min(0).to(dtype)
        if "votes" in v:
            fields["votes"] = v["votes"]
        if "mean" in v:
            variance = v["squares"] / (self.total - 1 if self.total > 1 else torch.nan)
            fields |= {"mean": v["mean"].to(dtype), "var": variance.to(dtype)}
        return fields
