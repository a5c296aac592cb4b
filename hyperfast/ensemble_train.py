"""Training of many networks of one architecture at once: hf.ensemble.train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .ensemble_share import Ranks
from .nn.target_net import TargetNet
from .ops.checks import check_tensor
from .ops.target_net_dropout import new_seed

Batch = tuple[Tensor, Tensor]
Batches = tuple[Tensor, Tensor] | Callable[[int], Batch] | Iterable[Batch]


def train(
    template: nn.Sequential,
    members: int,
    batches: Batches,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    *,
    steps: int,
    seed: int = 0,
    same_batches: bool = False,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    group: Any = None,
    **optim_kwargs: Any,
) -> Tensor:
    """Trains M ordinary networks at once: theta_m <- optimizer(theta_m, gradient of loss_m), for all m together.

    Member m starts at row m of TargetNet(template).init(members, torch.Generator().manual_seed(seed)). The sum of
    the members' losses is differentiated, so that each gets exactly the gradient that it would get alone.
    Optimisers that treat every weight by itself (SGD, Adam, AdamW, RMSprop, Adagrad, ...) therefore give M separate
    runs. Those that couple weights (LBFGS, Adafactor, Muon, anything with a norm over its parameters) see one
    matrix theta [M,P], and the members influence each other.

    Args:
        template: as TargetNet takes it, without PerTargetNorm, whose parameters are not part of theta.
        members: M.
        batches: where the data come from, n inputs per member and step; one of

            * (inputs [n_total,...], targets [n_total,...]): every member goes through its own random order of the
              rows, `batch_size` at a time, and through another one in the next epoch; rows left over at the end
              of an epoch are dropped (DataLoader with shuffle and drop_last). With same_batches one order serves
              all members.
            * a function of the step, 0 to steps - 1, that returns (x, y): x [M,n,...] and y [M,n,...], or with
              same_batches x [n,...] and y [n,...] shared by all members.
            * an iterable of such pairs, for example a DataLoader; begun again when it ends.
        loss_fn: loss_fn(outputs [M,n,...], targets [M,n,...]) -> [M], one loss per member.
        optimizer: a class of torch.optim or a function of [theta]; gets optim_kwargs.
        steps: of the optimiser.
        seed: of the initial weights, of the random order of the rows, and of dropout.
        same_batches: whether all members see the same inputs and targets.
        batch_size: n, where batches are tensors; all of their rows where they have fewer.
        progress: called as progress(done, steps) after every step.
        group: a torch.distributed process group or DeviceMesh of one dimension, whose ranks share the members out.
            Every rank calls with the same arguments, and batches give what all members see; a rank takes its own
            members' part. Each member is the network that one process would train, but for dropout, whose masks are
            other ones; an optimiser that couples weights couples those of a rank.

    Returns:
        theta [M,P], without gradient, on the inputs' device and in their dtype; in a group, on every rank.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: another rank failed or was lost; how soon a lost one is noticed is the group's timeout.
    """
    net = TargetNet(template)
    if len(net.norms):
        raise ValueError(f"template must have no PerTargetNorm (its weights are not in theta); got {list(net.norms)}")
    for name, value in (("members", members), ("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < (name != "steps"):
            raise ValueError(f"{name} must be a whole number of at least {int(name != 'steps')}; got {value!r}")
    ranks = Ranks(group, "train")
    if members < ranks.size:
        raise ValueError(f"members must be at least one for each of the {ranks.size} ranks; got {members}")
    own = ranks.members(members)

    def trained() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        initial = net.init(members, generator)[own.start : own.stop]
        source = _as_batches(batches, members, own, batch_size, same_batches, generator)
        theta: Tensor | None = None
        stepper: Any = None
        with torch.enable_grad():
            for step in range(steps):
                x, y = source(step)
                if theta is None:
                    theta = initial.to(x.device, x.dtype).requires_grad_()
                    stepper = optimizer([theta], **optim_kwargs)
                stepper.step(_closure(net, theta, x, y, loss_fn, same_batches, generator, ranks.rank))
                if progress is not None:
                    progress(step + 1, steps)
        if theta is None:  # no step says what the data are, unless they are tensors
            like = batches[0] if isinstance(batches, tuple) else initial
            theta = initial.to(like.device, like.dtype)
        return theta.detach()

    mine = ranks.together(trained, lambda theta: (members, steps, theta.shape[1], str(theta.dtype)))
    return ranks.rows(mine, members)


def _as_batches(
    batches: Batches, members: int, own: range, batch_size: int, same_batches: bool, generator: torch.Generator
) -> Callable[[int], Batch]:
    """What `own` of the members see at a step, for each form that batches may have."""
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(t, Tensor) for t in batches):
        inputs = check_tensor("batches[0]", batches[0], tuple(range(1, 9)), "[n_total,...]")
        targets: Any = batches[1]
        total = inputs.shape[0]
        if targets.dim() < 1 or targets.shape[0] != total:
            raise ValueError(f"batches[1] must have a target for each of {total} inputs; got {tuple(targets.shape)}")
        if total == 0:
            raise ValueError("batches must have at least one input; got none")
        orders, kept = (1, range(1)) if same_batches else (members, own)
        rows = _Rows(total, orders, kept, min(batch_size, total), generator)

        def draw(step: int) -> Batch:
            index = rows.draw().to(inputs.device)
            index = index[0] if same_batches else index
            return _checked_batch((inputs[index], targets[index.to(targets.device)]), len(own), same_batches)

        return draw
    source: Callable[[int], Any]
    if isinstance(batches, Iterable) and not isinstance(batches, Tensor | tuple):
        source = _Restarted(batches).draw
    elif callable(batches):
        source = batches
    else:
        raise TypeError(
            "batches must be a pair of tensors (inputs, targets), a function of the step or an iterable of pairs; "
            f"got {type(batches).__name__}"
        )
    part = slice(own.start, own.stop)

    def draw_part(step: int) -> Batch:
        x, y = _checked_batch(source(step), members, same_batches)
        return x if same_batches else x[part], y[part]

    return draw_part


class _Rows:
    """Random orders of `total` rows, drawn anew in every epoch: of `orders` of them those that are `kept`."""

    def __init__(self, total: int, orders: int, kept: range, batch_size: int, generator: torch.Generator) -> None:
        self.size, self.generator, self.orders, self.kept = batch_size, generator, orders, kept
        self.order = torch.empty(len(kept), total, dtype=torch.int32)  # as long as M data sets, so 4 bytes, not 8
        self.at = total

    def draw(self) -> Tensor:
        """The next rows, [kept, batch_size] int64."""
        if self.at + self.size > self.order.shape[1]:
            self.at = 0
            for number in range(self.orders):
                drawn = torch.randperm(self.order.shape[1], generator=self.generator)
                if number in self.kept:
                    self.order[number - self.kept.start] = drawn
        self.at += self.size
        return self.order[:, self.at - self.size : self.at].long()


class _Restarted:
    """An iterable of batches, begun again when it ends."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches, self.iterator = batches, iter(batches)

    def draw(self, step: int) -> Any:
        for _ in range(2):
            for batch in self.iterator:
                return batch
            self.iterator = iter(self.batches)
        raise ValueError(f"batches must yield a batch for every step; got {step}, and it can't be begun again")


def _checked_batch(batch: Any, members: int, same_batches: bool) -> Batch:
    if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        raise TypeError(f"batches must give pairs of tensors (x, y); got {type(batch).__name__}")
    x, y = batch
    check_tensor("x of batches", x, tuple(range(1, 10)), "[n,...]" if same_batches else "[M,n,...]")
    rows = x.shape[:1] if same_batches else x.shape[:2]
    if not same_batches and (x.dim() < 2 or x.shape[0] != members):
        raise ValueError(
            f"x of batches must be [M,n,...] with {members} members, or shared with same_batches=True; "
            f"got {tuple(x.shape)}"
        )
    if y.shape[: len(rows)] != rows:
        raise ValueError(f"y of batches must begin with x's {tuple(rows)}; got {tuple(y.shape)}")
    return x, y.expand(members, *y.shape) if same_batches else y


def _closure(net, theta, x, y, loss_fn, shared, generator, rank) -> Callable[[], Tensor]:
    """What an optimiser's step calls: the sum of the losses, with its gradient in theta.grad."""

    def closure() -> Tensor:
        seed = new_seed("cpu", generator).to(x.device) + rank if net.has_dropout else None
        loss = loss_fn(net(x, theta, shared=shared, seed=seed), y)
        if not isinstance(loss, Tensor) or tuple(loss.shape) != (theta.shape[0],):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return one loss per member, ({theta.shape[0]},); got {got}")
        total = loss.sum()
        (theta.grad,) = torch.autograd.grad(total, theta)  # and of nothing else that loss_fn may hold
        return total

    return closure
