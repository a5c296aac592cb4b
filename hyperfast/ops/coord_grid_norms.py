"""PerTargetNorm on grids: with its statistics given, a norm is part of the layer beside it.

    gamma (h - mean) / sqrt(var + eps) + beta = s h + t      s = gamma / sqrt(var + eps)    t = beta - s mean

so that behind a layer without activation W, c become diag(s) W, s c + t, and before a layer W diag(s), W t + c. A norm
with no layer beside it becomes one, diag(s), t. This is arithmetic on weights, not on points, and plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..plan import IDENTITY, NormStage
from ..plan_steps import ACTIVATE, CLOSE, LINEAR, OPEN, Step, Steps, joined
from ..reference.coord_grid import computed

Statistics = dict[str, tuple[Tensor, Tensor]]
Moments = Callable[[Tensor, Steps], Tensor]


def folded(
    theta: Tensor,
    items: Sequence[Step | NormStage],
    net: Any,
    stats: Statistics | None,
    moments: Moments,
    points: int,
) -> tuple[Tensor, Steps]:
    """theta [B,P'] and steps that compute what `items` do, norms included.

    moments(theta, steps) gives [B,2,F], mean and biased variance over the `points` points of each network.
    """
    first = items[0]
    fold = _Fold(theta, first.inputs if isinstance(first, Step) else first.features)
    for item in items:
        if isinstance(item, Step):
            fold.step(item)
            continue
        norm = net.norm_of(item)
        if stats is not None:
            mean, var = (s.reshape(-1, item.features) for s in stats[item.names[0]])
        elif norm.takes_statistics:
            mean, var = norm.pooled(*moments(*fold.so_far()).unbind(1), points)
        else:
            mean, var = norm.running_mean, norm.running_var
        s = norm.gamma.to(fold.dtype) * torch.rsqrt(var.to(fold.dtype) + item.eps)
        fold.norm(s, norm.beta.to(fold.dtype) - mean * s, item)
    return fold.done()


class _Fold:
    """Steps and their weights, [B,o,i] and [B,o] of each LINEAR one."""

    def __init__(self, theta: Tensor, inputs: int) -> None:
        self.theta, self.at, self.dtype, self.inputs = theta, 0, computed(theta.dtype), inputs
        self.steps: list[Step] = []
        self.weights: list[tuple[Tensor, Tensor | None]] = []  # of the LINEAR steps, in order
        self.pending: tuple[Tensor, Tensor] | None = None  # s and t, for the next layer

    def step(self, step: Step) -> None:
        if step.kind != LINEAR:
            self._settle(step.inputs)
            self.steps.append(step)
            return
        networks, end = self.theta.shape[0], self.at + step.inputs * step.outputs
        weight = self.theta[:, self.at : end].reshape(networks, step.outputs, step.inputs).to(self.dtype)
        self.at = end + step.outputs * step.bias
        bias = self.theta[:, end : self.at].to(self.dtype) if step.bias else None
        if self.pending is not None:
            s, t = self.pending
            self.pending = None
            shift = (weight * t.unsqueeze(-2)).sum(-1)
            weight, bias = weight * s.unsqueeze(-2), shift if bias is None else bias + shift
        self._append(step._replace(bias=bias is not None), weight, bias)

    def norm(self, s: Tensor, t: Tensor, stage: NormStage) -> None:
        self._settle(stage.features)
        s, t = (v.expand(self.theta.shape[0], stage.features) for v in (s, t))
        if self.steps and self.steps[-1].kind == LINEAR and self.steps[-1].activation == IDENTITY:
            step = self.steps.pop()
            weight, bias = self.weights.pop()
            bias = t if bias is None else s * bias + t
            self._append(step._replace(bias=True, activation=stage.activation), s.unsqueeze(-1) * weight, bias)
        elif stage.activation == IDENTITY:
            self.pending = s, t
        else:
            self._append(Step(LINEAR, *(stage.features,) * 2, stage.activation, True), torch.diag_embed(s), t)

    def so_far(self) -> tuple[Tensor, Steps]:
        """What is there, without the OPENs that are not closed yet."""
        self._settle(self.pending[0].shape[-1] if self.pending is not None else 0)
        open_ones: list[int] = []
        for i, step in enumerate(self.steps):
            if step.kind == OPEN:
                open_ones.append(i)
            elif step.kind == CLOSE:
                open_ones.pop()
        steps = joined(s for i, s in enumerate(self.steps) if i not in open_ones)
        return self._flat(), Steps(steps or (Step(ACTIVATE, self.inputs, self.inputs),))

    def done(self) -> tuple[Tensor, Steps]:
        return self.so_far()

    def _settle(self, features: int) -> None:
        """A norm that no layer follows becomes one."""
        if self.pending is not None:
            s, t = self.pending
            self.pending = None
            self._append(Step(LINEAR, features, features, IDENTITY, True), torch.diag_embed(s), t)

    def _append(self, step: Step, weight: Tensor, bias: Tensor | None) -> None:
        self.steps.append(step)
        self.weights.append((weight, bias))

    def _flat(self) -> Tensor:
        pieces = [t.flatten(1) for pair in self.weights for t in pair if t is not None]
        return torch.cat(pieces, 1) if pieces else self.theta[:, :0].to(self.dtype)
