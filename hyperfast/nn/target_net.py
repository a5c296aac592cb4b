"""TargetNet: a network template, evaluated for many weight vectors at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_size, check_tensor
from ..ops.target_net import run_cnn, run_mlp
from ..ops.target_net_dropout import dropout, new_seed
from ..plan import (
    ActivationStage,
    CNNStage,
    DropoutStage,
    FlattenStage,
    MLPStage,
    NormStage,
    PoolStage,
    ResidualStage,
    Stage,
)
from ..reference.target_net import activate
from .compiler import compile_template
from .layers import PerTargetNorm, check_residual

Statistics = dict[str, tuple[Tensor, Tensor]]


class TargetNet(nn.Module):
    """B networks of one architecture with B different flat weight vectors: y[b, n] = T(x[b, n]; theta[b]).

    The template is an nn.Sequential of Linear, Conv2d, MaxPool2d, AvgPool2d, Flatten, Dropout, ReLU, LeakyReLU,
    ELU, Tanh, Sigmoid, GELU, SiLU, Identity, hf.nn.Cos, hf.nn.Sin, hf.nn.Residual and hf.nn.PerTargetNorm. It
    is read once, its layers grouped into fused stages (see `plan`), and its weights are not kept: dtype and
    device come from theta. state_dict holds nothing but PerTargetNorm's gamma, beta and running statistics.

    theta's order is torch.nn.utils.parameters_to_vector(template.parameters()), without PerTargetNorm's.

    Raises TypeError or ValueError at construction, naming a layer that is not supported.
    """

    def __init__(self, template: nn.Sequential) -> None:
        super().__init__()
        self.plan = compile_template(template)
        self.norms = nn.ModuleDict()
        self._norm_names = [s.names[0] for _, s in self.plan.leaves() if isinstance(s, NormStage)]
        for name in self._norm_names:
            self.norms[_key(name)] = copy.deepcopy(template.get_submodule(name))
        self.has_dropout = any(isinstance(stage, DropoutStage) for _, stage in self.plan.leaves())
        self._input = _input_rank(self.plan.stages)

    # ---- the layout of theta --------------------------------------------------------------------

    @property
    def num_weights(self) -> int:
        """P, the length of one weight vector."""
        return self.plan.num_weights

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...], slice]]:
        """(name as in template.named_parameters(), shape, slice of a theta row), in order."""
        return [(entry.name, entry.shape, entry.place) for entry in self.plan.layout]

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """theta [B,P] -> {name: view [B, *shape]}."""
        self._check_theta(theta)
        pieces = theta.split([e.place.stop - e.place.start for e in self.plan.layout], 1)  # backward: one cat
        return {e.name: piece.unflatten(1, e.shape) for e, piece in zip(self.plan.layout, pieces, strict=True)}

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """{name: [B, *shape]} -> theta [B,P]; the inverse of unflatten."""
        names = [entry.name for entry in self.plan.layout]
        if set(weights) != set(names):
            raise ValueError(f"weights must have the names {names}; got {list(weights)}")
        return torch.cat([weights[name].flatten(1) for name in names], 1)

    def init(self, B: int, generator: torch.Generator | None = None) -> Tensor:
        """theta [B,P] of B networks, each initialised as PyTorch does: U(-1, 1) / sqrt(fan_in), weight and bias."""
        device = generator.device if generator is not None else None
        theta = torch.empty(B, self.num_weights, device=device)
        for entry in self.plan.layout:
            bound = entry.fan_in**-0.5 if entry.fan_in else 0.0
            theta[:, entry.place].uniform_(-bound, bound, generator=generator)
        return theta

    def norm_of(self, stage: NormStage) -> PerTargetNorm:
        """The module with a norm's gamma, beta and running statistics."""
        return cast(PerTargetNorm, self.norms[_key(stage.names[0])])

    # ---- evaluation -----------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        theta: Tensor,
        shared: bool | None = None,
        stats: Statistics | None = None,
        *,
        seed: Tensor | None = None,
    ) -> Tensor:
        """y [B,N,...] for x [B,N,...] (own inputs) or [N,...] (shared by all networks) and theta [B,P].

        shared=None infers from x's rank where the first layer fixes it (Linear, Conv2d). stats: from
        statistics(), used in place of those of x. Raises ValueError or TypeError that names the argument.

        In training, Dropout layers drop features of every network and row by themselves, also of a shared x. seed,
        [1] int64 on x's device, fixes their masks; without it a fresh one is drawn from torch's default generator.
        """
        return self._evaluate(x, theta, shared, stats, None, seed)

    def statistics(self, theta: Tensor, x: Tensor, shared: bool | None = None) -> Statistics:
        """PerTargetNorm statistics of each network on x: {layer: (mean, biased variance)}, each [B,1,features]."""
        collected: Statistics = {}
        self._evaluate(x, theta, shared, None, collected, None)
        return collected

    def _evaluate(self, x, theta, shared, stats, collect, seed) -> Tensor:
        self._check_theta(theta)
        shared = self._is_shared(x, shared)
        if not shared and x.shape[0] != theta.shape[0]:
            raise ValueError(
                f"x must have theta's {theta.shape[0]} networks in dimension 0, or be shared; got {tuple(x.shape)}"
            )
        if stats is not None and set(stats) != set(self._norm_names):
            raise ValueError(f"stats must have the layers {self._norm_names}; got {list(stats)}")
        if not (self.training and self.has_dropout):
            seed = None
        elif seed is None:
            seed = new_seed(x.device)
        run = _Run(self, shared, self._pieces(theta), theta.shape[0], stats, collect, seed)
        y = run.stages(self.plan.stages, x)
        return y.expand(theta.shape[0], *y.shape) if run.shared else y

    def _check_theta(self, theta: Tensor) -> None:
        check_tensor("theta", theta, (2,), "[B,P]")
        check_size("theta", theta, 1, self.num_weights, "the template's number of weights")

    def _is_shared(self, x: Tensor, shared: bool | None) -> bool:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor; got {type(x).__name__}")
        if self._input is None:
            if shared is None:
                raise ValueError("the first layer does not tell whether x is shared: pass shared=True or False")
            return shared
        kind, rank = self._input
        own = x.dim() == rank + 1
        if x.dim() not in (rank, rank + 1) or (shared is not None and shared == own):
            wanted = {None: f"{rank} (shared) or {rank + 1} (own)", True: str(rank), False: str(rank + 1)}[shared]
            raise ValueError(f"x must have {wanted} dimensions for a first {kind}; got {tuple(x.shape)}")
        return not own

    def _pieces(self, theta: Tensor) -> Iterator[Tensor]:
        """theta's columns for each stage that has weights: views, and one concatenation in backward."""
        sizes = [stage.num_weights for _, stage in self.plan.leaves() if not isinstance(stage, ResidualStage)]
        sizes = [size for size in sizes if size]
        return iter((theta,) if len(sizes) == 1 else theta.split(sizes, 1) if sizes else ())

    def extra_repr(self) -> str:
        return str(self.plan)


def _key(name: str) -> str:
    return name.replace(".", "_")  # ModuleDict takes no dots


def _input_rank(stages: tuple[Stage, ...]) -> tuple[str, int] | None:
    """The layer that fixes the rank of a shared x, and that rank; None where none does."""
    for stage in stages:
        match stage:
            case MLPStage():
                return "Linear", 2
            case CNNStage():
                return "Conv2d", 4
            case ResidualStage():
                return _input_rank(stage.stages)
            case NormStage():
                return "PerTargetNorm", 2
            case FlattenStage() | PoolStage():
                return None
    return None


class _Run:
    """One evaluation of a plan. `shared` turns False at the first stage that tells networks apart."""

    def __init__(
        self, net: TargetNet, shared: bool, pieces: Iterator[Tensor], networks: int, stats, collect, seed
    ) -> None:
        self.net, self.shared, self.pieces, self.networks = net, shared, pieces, networks
        self.stats, self.collect = stats, collect
        self.seed: Tensor | None = seed
        self.dropouts = 0  # so far: the layer of the next one's masks

    def stages(self, stages: tuple[Stage, ...], x: Tensor) -> Tensor:
        for stage in stages:
            x = self.stage(stage, x)
        return x

    def stage(self, stage: Stage, x: Tensor) -> Tensor:
        match stage:
            case MLPStage():
                self.shared = False
                return run_mlp(x, next(self.pieces), stage.mlp)
            case ResidualStage():
                added = self.stages(stage.stages, x)
                check_residual(f"layer {stage.names[0]!r}", x, added)
                return x + added
            case NormStage():
                return self.norm(stage, x)
            case CNNStage():
                self.shared = False
                return run_cnn(x, next(self.pieces), stage.cnn)
            case PoolStage():
                return self.pool(stage, x)
            case ActivationStage():
                return activate(stage.activation, x)
            case FlattenStage():
                return x.flatten(1 if self.shared else 2)
            case DropoutStage():
                return self.dropout(stage, x)
        raise TypeError(f"no evaluation for {type(stage).__name__}")

    def norm(self, stage: NormStage, x: Tensor) -> Tensor:
        name = stage.names[0]
        norm = self.net.norm_of(stage)
        stats = self.stats[name] if self.stats is not None else norm.statistics(x)
        if self.collect is not None:
            self.collect[name] = tuple(s.expand(self.networks, 1, stage.features) for s in stats)
        return activate(stage.activation, norm(x, stats))

    def dropout(self, stage: DropoutStage, x: Tensor) -> Tensor:
        if self.seed is None:
            return x
        if self.shared:
            x, self.shared = x.expand(self.networks, *x.shape), False
        self.dropouts += 1
        return dropout(x, stage.p, self.seed, self.dropouts - 1)

    def pool(self, stage: PoolStage, x: Tensor) -> Tensor:
        pool = F.max_pool2d if stage.kind == "max" else F.avg_pool2d
        y = pool(x.flatten(0, -4), stage.kernel_size, stage.stride, stage.padding)
        return y.unflatten(0, x.shape[:-3])
