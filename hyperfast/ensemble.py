"""Large ensembles of networks of one architecture: trained at once, and evaluated in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ensemble_train import train
from .nn.target_net import TargetNet
from .ops.ensemble import ensemble_sums

CLASSIFICATION = ("mean_prob", "votes", "entropy", "disagreement")
REGRESSION = ("mean", "var")
REDUCTIONS = (*CLASSIFICATION, *REGRESSION, "member_accuracy")

__all__ = ["REDUCTIONS", "Prediction", "predict", "train"]

Sampler = Callable[[Tensor], Tensor]
# Bytes of theta and of what lies between two stages, alive at once: a share of a CPU's last-level cache; a part of a GPU's memory.
_CHUNK_BYTES = {"cpu": 4 << 20}
_CHUNK_BYTES_GPU = 1 << 30


_ABSENT: Any = None


@dataclass(frozen=True)
class Prediction:
    """What predict() returns. N inputs, C classes, O outputs, M members; fields not asked for are None.

    Typed as tensors, since whoever reads a field asked for it.
    """

    mean_prob: Tensor = _ABSENT
    """[N,C], the mean of the members' softmax."""
    votes: Tensor = _ABSENT
    """[N,C] int64, how many members prefer each class (ties: the smallest label)."""
    entropy: Tensor = _ABSENT
    """[N], nats, of mean_prob."""
    disagreement: Tensor = _ABSENT
    """[N], nats, entropy of mean_prob minus the members' mean entropy."""
    mean: Tensor = _ABSENT
    """[N,O], of the outputs."""
    var: Tensor = _ABSENT
    """[N,O], of the outputs, unbiased as torch.var."""
    member_accuracy: Tensor = _ABSENT
    """[M], share of inputs that each member classifies as targets says."""


@torch.no_grad()
def predict(
    net: TargetNet,
    x: Tensor | Iterable[Tensor],
    members: Tensor | tuple[Sampler, int],
    reduce: Sequence[str] = ("mean_prob",),
    chunk: int | str = "auto",
    group=None,
    progress: Callable[[int, int], None] | None = None,
    *,
    targets: Tensor | None = None,
) -> Prediction:
    """Runs M networks on N shared inputs and reduces over the members, in O(N*C) memory for any M.

    Args:
        net: the architecture.
        x: [N,...], or an iterable of such batches, whose results are concatenated.
        members: theta [M,P], or (sampler, M) with sampler(indices [m] int64) -> theta [m,P]. A sampler must
            depend on the indices alone, so that the answer depends on neither chunk nor rank. With several
            batches it is called again for each.
        reduce: names of the fields wanted, see Prediction.
        chunk: members evaluated at once, or "auto".
        group: sharding over ranks; not available yet.
        progress: called as progress(done, total) after every chunk, in members times batches where the number
            of batches is known.
        targets: [N] class labels, for "member_accuracy".

    Returns:
        Prediction, in float32 (float64 for float64 outputs); sums are kept in float64.
    """
    if group is not None:
        raise NotImplementedError("predict(group=...): sharding over ranks is not available yet; pass group=None")
    reduce = _checked_reductions(reduce, targets)
    sampler, total = _as_sampler(net, members)
    if not (chunk == "auto" or (isinstance(chunk, int) and chunk >= 1)):
        raise ValueError(f"chunk must be 'auto' or a positive number of members; got {chunk!r}")
    batches = [x] if isinstance(x, Tensor) else x
    count = len(batches) if isinstance(batches, Sized) else None
    parts: list[dict[str, Tensor]] = []
    correct: Tensor | None = None
    seen = 0
    for index, batch in enumerate(batches):
        rows = batch.shape[0]
        step = chunk if isinstance(chunk, int) else _auto_chunk(net, batch)
        labels = None if targets is None else _labels(targets, seen, rows, batch)
        sums = _Sums(reduce, labels, total)
        for start in range(0, total, step):
            stop = min(start + step, total)
            sums.add(net(batch, sampler(torch.arange(start, stop)), shared=True), start)
            if progress is not None:
                progress(index * total + stop, total * (count or index + 1))
        parts.append(sums.result(batch, total))
        if labels is not None and sums.correct is not None:
            correct = sums.correct if correct is None else correct + sums.correct
        seen += rows
    if not parts:
        raise ValueError("x must have at least one batch; got none")
    if targets is not None and targets.shape[0] != seen:
        raise ValueError(f"targets must have one label per input, {seen}; got {tuple(targets.shape)}")
    fields = {name: torch.cat([p[name] for p in parts]) for name in reduce if name != "member_accuracy"}
    if correct is not None:
        fields["member_accuracy"] = (correct.double() / max(seen, 1)).float()
    return Prediction(**fields)


def _checked_reductions(reduce: Sequence[str], targets: Tensor | None) -> tuple[str, ...]:
    reduce = (reduce,) if isinstance(reduce, str) else tuple(reduce)
    unknown = [name for name in reduce if name not in REDUCTIONS]
    if unknown or not reduce:
        raise ValueError(f"reduce must name some of {', '.join(REDUCTIONS)}; got {reduce}")
    if "member_accuracy" in reduce and targets is None:
        raise ValueError("reduce='member_accuracy' needs targets=, the class label of every input")
    return reduce


def _as_sampler(net: TargetNet, members: Tensor | tuple[Sampler, int]) -> tuple[Sampler, int]:
    if isinstance(members, Tensor):
        sampler, total = (lambda indices: members[indices[0] : indices[-1] + 1]), members.shape[0]
    elif isinstance(members, tuple) and len(members) == 2 and callable(members[0]):
        sampler, total = members
    else:
        raise TypeError(f"members must be theta [M,P] or (sampler, M); got {type(members).__name__}")
    if total < 1:
        raise ValueError(f"members must be at least one; got {total}")

    def checked(indices: Tensor) -> Tensor:
        theta = sampler(indices)
        if tuple(theta.shape) != (len(indices), net.num_weights):
            raise ValueError(
                f"the sampler must return theta {(len(indices), net.num_weights)} for {len(indices)} indices; "
                f"got {tuple(theta.shape)}"
            )
        return theta

    return checked, total


def _labels(targets: Tensor, start: int, rows: int, batch: Tensor) -> Tensor:
    labels = targets[start : start + rows]
    if labels.shape != (rows,):
        raise ValueError(f"targets must be labels [N], one per input; got {tuple(targets.shape)}")
    return labels.to(batch.device)


def _auto_chunk(net: TargetNet, batch: Tensor) -> int:
    """Members whose weights and largest values between two stages fit the budget together."""
    values = batch.shape[0] * net.plan.largest_row(tuple(batch.shape[1:])) + net.num_weights
    budget = _CHUNK_BYTES.get(batch.device.type, _CHUNK_BYTES_GPU)
    return max(1, budget // (4 * values))


class _Sums:
    """What is kept of the members for one batch of inputs: sums over members, in float64."""

    def __init__(self, reduce: tuple[str, ...], labels: Tensor | None, total: int) -> None:
        self.reduce, self.labels, self.total = reduce, labels, total
        self.prob: Tensor | None = None
        self.entropy: Tensor | None = None
        self.votes: Tensor | None = None
        self.correct: Tensor | None = None
        self.moments: _Moments | None = _Moments() if self.wants("mean", "var") else None

    def wants(self, *names: str) -> bool:
        return any(name in self.reduce for name in names)

    def add(self, y: Tensor, start: int) -> None:
        """y [m,N,C]: outputs of members start .. start + m."""
        if y.dim() != 3 and self.wants(*CLASSIFICATION, "member_accuracy"):
            raise ValueError(f"classification needs outputs [M,N,C]; the networks give {tuple(y.shape)}")
        wanted = {
            "prob": self.wants("mean_prob", "entropy", "disagreement"),
            "entropy": self.wants("disagreement"),
            "votes": self.wants("votes"),
            "choice": self.wants("member_accuracy"),
        }
        if any(wanted.values()):
            sums = ensemble_sums(y, **wanted)
            self.prob, self.entropy, self.votes = (
                _plus(total, more)
                for total, more in ((self.prob, sums.prob), (self.entropy, sums.entropy), (self.votes, sums.votes))
            )
            if sums.choice is not None and self.labels is not None:
                if self.correct is None:
                    self.correct = torch.zeros(self.total, dtype=torch.int64, device=y.device)
                self.correct[start : start + y.shape[0]] = sums.choice.eq(self.labels).sum(1)
        if self.moments is not None:
            self.moments.add(y.double())

    def result(self, batch: Tensor, total: int) -> dict[str, Tensor]:
        dtype = torch.float64 if batch.dtype == torch.float64 else torch.float32
        fields: dict[str, Tensor] = {}
        if self.prob is not None:
            prob = self.prob / total
            entropy = torch.special.entr(prob).sum(-1)
            fields |= {"mean_prob": prob.to(dtype), "entropy": entropy.to(dtype)}
            if self.entropy is not None:
                fields["disagreement"] = (entropy - self.entropy / total).clamp_min(0).to(dtype)
        if self.votes is not None:
            fields["votes"] = self.votes
        if self.moments is not None:
            fields |= {"mean": self.moments.mean.to(dtype), "var": self.moments.variance().to(dtype)}
        return fields


class _Moments:
    """Mean and sum of squared deviations by Chan's update, so that no digits cancel. float64."""

    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, y: Tensor) -> None:
        """y [m,N,...]."""
        mean = y.mean(0)
        squares = (y - mean).square_().sum(0)
        both = self.count + y.shape[0]
        if self.count == 0:
            self.mean, self.squares = mean, squares
        else:
            delta = mean - self.mean
            self.mean = self.mean + delta * (y.shape[0] / both)
            self.squares = self.squares + squares + delta.square() * (self.count * y.shape[0] / both)
        self.count = both

    def variance(self) -> Tensor:
        """Unbiased; NaN for one member, as torch.var."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.squares, torch.nan)


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None or more is None else total.add_(more)
