"""Large ensembles of networks of one architecture: trained at once, and evaluated in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .ensemble_share import PartialSums, Ranks, fingerprint
from .ensemble_sums import REDUCTIONS, Sums
from .ensemble_train import train
from .nn.target_net import TargetNet

__all__ = ["REDUCTIONS", "Prediction", "Ranks", "predict", "train"]

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
    group: Any = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    targets: Tensor | None = None,
    partial: str | Path | None = None,
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
        group: a torch.distributed process group or DeviceMesh of one dimension. Every rank calls with the same
            arguments, evaluates its share of the members, and returns the same Prediction; ranks talk once, at the end.
        progress: called as progress(done, total) after every chunk, in members times batches where the number
            of batches is known, of this rank's share.
        targets: [N] class labels, for "member_accuracy".
        partial: a file in which the sums so far are kept, at least every half minute; a call with the same arguments
            goes on from it, and removes it when the answer is there. In a group every rank has its own, whose name
            has ".RANKofSIZE" behind it.

    Returns:
        Prediction, in float32 (float64 for float64 outputs); sums are kept in float64. For any number of ranks votes
        are the same bit by bit, means within rounding of float64 sums.

    Raises:
        ValueError, TypeError: an argument is wrong, or ranks differ in theirs, or `partial` is of another call.
        RuntimeError: another rank failed or was lost; how soon a lost one is noticed is the group's timeout.
    """
    ranks = Ranks(group)

    def evaluate() -> tuple[_Share, list[Sums]]:
        share = _Share(net, members, _checked_reductions(reduce, targets), chunk, ranks, partial)
        return share, share.run(x, targets, progress)

    share, parts = ranks.together(evaluate, lambda found: found[0].about())
    fields: dict[str, list[Tensor]] = {}
    for sums in parts:
        if ranks.group is not None:
            with ranks.losses():
                sums.of_all_ranks(ranks.group)
        for name, value in sums.fields().items():
            fields.setdefault(name, []).append(value)
    found = {name: torch.cat(fields[name]) for name in share.reduce if name != "member_accuracy"}
    if "member_accuracy" in share.reduce and targets is not None:
        found["member_accuracy"] = (parts[-1].values["correct"].double() / max(len(targets), 1)).float()
    share.partial.remove()
    return Prediction(**found)


class _Share:
    """What one rank does: its members on all inputs."""

    def __init__(
        self, net: TargetNet, members: Tensor | tuple[Sampler, int], reduce: tuple[str, ...], chunk: int | str,
        ranks: Ranks, partial: str | Path | None,
    ) -> None:  # fmt: skip
        if not (chunk == "auto" or (isinstance(chunk, int) and chunk >= 1)):
            raise ValueError(f"chunk must be 'auto' or a positive number of members; got {chunk!r}")
        self.net, self.reduce, self.chunk = net, reduce, chunk
        self.sampler, self.total = _as_sampler(net, members)
        self.members = ranks.members(self.total)
        self.checked = ranks.group is not None or partial is not None
        path = None if partial is None else Path(partial)
        about: dict[str, Any] = {}
        if path is not None:
            if ranks.group is not None:
                path = path.with_name(f"{path.name}.{ranks.rank}of{ranks.size}")
            first = self.sampler(torch.tensor(self.members[:1])) if self.members else torch.empty(0)
            about = {
                "members": self.total, "share": [self.members.start, self.members.stop], "reduce": list(reduce),
                "first weights": list(fingerprint(first)),
            }  # fmt: skip
        self.partial = PartialSums(path, about)

    def run(
        self, x: Tensor | Iterable[Tensor], targets: Tensor | None, progress: Callable[[int, int], None] | None
    ) -> list[Sums]:
        """The sums of every batch; those of member_accuracy over all batches are in the last."""
        if not isinstance(x, Tensor | Iterable):
            raise TypeError(f"x must be a tensor or an iterable of tensors; got {type(x).__name__}")
        batches = [x] if isinstance(x, Tensor) else x
        count = len(batches) if isinstance(batches, Sized) else None
        parts: list[Sums] = []
        seen, own = 0, self.members
        for index, batch in enumerate(batches):
            if not isinstance(batch, Tensor):
                raise TypeError(
                    f"x must be a tensor or an iterable of tensors; batch {index} is a {type(batch).__name__}"
                )
            rows = batch.shape[0]
            labels = None if targets is None else _labels(targets, seen, rows, batch)
            sums = Sums(self.reduce, labels, self.total, batch.dtype)
            if parts and "correct" in parts[-1].values:
                sums.values["correct"] = parts[-1].values.pop("correct")
            self.partial.restore(index, batch, sums, fingerprint(batch) if self.checked else ())
            step = self.chunk if isinstance(self.chunk, int) else _auto_chunk(self.net, batch)
            if not own:  # more ranks than members: sums of none have the right shapes
                sums.add(self.net(batch, batch.new_empty(0, self.net.num_weights), shared=True), 0)
            for start in range(own.start + sums.members, own.stop, step):
                stop = min(start + step, own.stop)
                sums.add(self.net(batch, self.sampler(torch.arange(start, stop)), shared=True), start)
                self.partial.keep(index, sums)
                if progress is not None:
                    progress(index * len(own) + stop - own.start, len(own) * (count or index + 1))
            parts.append(sums)
            seen += rows
        if not parts:
            raise ValueError("x must have at least one batch; got none")
        if targets is not None and targets.shape[0] != seen:
            raise ValueError(f"targets must have one label per input, {seen}; got {tuple(targets.shape)}")
        self.partial.keep(len(parts) - 1, parts[-1], now=True)
        return parts

    def about(self) -> Any:
        """What must be the same on every rank."""
        return self.total, self.net.num_weights, self.reduce, [batch["inputs"] for batch in self.partial.batches]


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
        if not isinstance(theta, Tensor):
            raise TypeError(f"the sampler must return a tensor theta [m,P]; got {type(theta).__name__}")
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
