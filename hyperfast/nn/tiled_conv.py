"""Convolutions whose kernels a small shared network generates, tile by tile (Ha, Dai and Le, HyperNetworks, 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import autocast_type
from ..ops.tiled_conv import assemble_kernels
from .hyper_lstm import check_positive

_PAPER_STD = 0.01


class TileHypernetwork(nn.Module):
    """A two-layer linear network that makes a tile of a convolution's kernel of an embedding z (equation 2).

        a_i = W_i z + B_i        tile[o, i] = <W_out[o], a_i> + B_out[o]        i < N_in, o < N_out

    One generator serves all convolutions of a model (HyperConv2d); larger kernels are tiles side by side (equation 3).

    Args:
        embedding_size: Z, elements of z.
        hidden_size: d, elements of each a_i.
        tile: (N_in, N_out), input and output channels of a tile.
        kernel_size: k, or (kh, kw).
        init: of the generator and of the embeddings of its convolutions. "he": kernels start with He's standard
            deviation, sqrt(2 / (in_channels * kh * kw)): weights have variance 1/Z and 1/d, embeddings that of He.
            "paper": the authors' for MNIST, normal with 0.01, truncated at two standard deviations. Biases start at 0.
        device, dtype: of the parameters.

    Parameters: weight_in [N_in,d,Z], bias_in [N_in,d], weight_out [N_out,kh,kw,d], bias_out [N_out,kh,kw].

    Raises ValueError, naming the argument.
    """

    def __init__(
        self,
        embedding_size: int = 64,
        hidden_size: int = 64,
        tile: tuple[int, int] = (16, 16),
        kernel_size: int | tuple[int, int] = 3,
        init: str = "he",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("embedding_size", embedding_size)
        check_positive("hidden_size", hidden_size)
        if init not in ("he", "paper"):
            raise ValueError(f"init must be 'he' or 'paper'; got {init!r}")
        self.embedding_size, self.hidden_size, self.init = embedding_size, hidden_size, init
        self.tile = _pair("tile", tile)
        self.kernel_size = _pair("kernel_size", kernel_size)
        n_in, n_out = self.tile
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_in = nn.Parameter(torch.empty(n_in, hidden_size, embedding_size, **factory))
        self.bias_in = nn.Parameter(torch.empty(n_in, hidden_size, **factory))
        self.weight_out = nn.Parameter(torch.empty(n_out, *self.kernel_size, hidden_size, **factory))
        self.bias_out = nn.Parameter(torch.empty(n_out, *self.kernel_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The values of `init`."""
        for weight in (self.weight_in, self.weight_out):
            if self.init == "he":
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
            else:
                nn.init.trunc_normal_(weight, std=_PAPER_STD, a=-2 * _PAPER_STD, b=2 * _PAPER_STD)
        nn.init.zeros_(self.bias_in)
        nn.init.zeros_(self.bias_out)

    def forward(self, z: Tensor) -> Tensor:
        """The kernel [cols * N_out, rows * N_in, kh, kw] of z [rows, cols, Z]; rows tile the inputs."""
        return self.assemble([z])[0]

    def assemble(self, zs: Sequence[Tensor], penalty: bool = False) -> Any:
        """The kernels of all zs, each [rows, cols, Z], in one launch: a list of [cols * N_out, rows * N_in, kh, kw].

        In zs' dtype; under autocast in the dtype that the convolutions want. With `penalty` also the sum of the squares
        of all their elements, from the same pass: (kernels, penalty []). Differentiable; gradients of all kernels come
        back in one backward.
        """
        return assemble_kernels(zs, self.weight_in, self.bias_in, self.weight_out, self.bias_out, penalty)

    @contextmanager
    def assembled(self, model: nn.Module) -> Iterator[Assembly]:
        """A block inside which every HyperConv2d of `model` with this generator uses kernels assembled at once.

            with g.assembled(model) as kernels:
                loss = criterion(model(x), y) + l2 * kernels.penalty

        The kernels are those of the parameters at entry: step the optimiser after the block. A parameter of the
        generator, or an embedding, that changes inside is a RuntimeError, where a kernel is used next or at the end.

        Raises ValueError where the model has no such convolution.
        """
        convolutions = [m for m in model.modules() if isinstance(m, HyperConv2d) and m.generator is self]
        if not convolutions:
            raise ValueError(f"model must have a HyperConv2d with this generator; got {type(model).__name__} with none")
        assembly = Assembly(self, convolutions)
        before = [m._assembly for m in convolutions]
        for i, m in enumerate(convolutions):
            m._assembly = assembly, i
        try:
            yield assembly
            assembly.check()
        finally:
            for m, outer in zip(convolutions, before, strict=True):
                m._assembly = outer

    def extra_repr(self) -> str:
        return (
            f"embedding_size={self.embedding_size}, hidden_size={self.hidden_size}, tile={self.tile}, "
            f"kernel_size={self.kernel_size}, init={self.init!r}"
        )


class Assembly:
    """The kernels of several convolutions, assembled at once; what `TileHypernetwork.assembled` gives."""

    def __init__(self, generator: TileHypernetwork, convolutions: Sequence[HyperConv2d]) -> None:
        self._generator, self._convolutions = generator, convolutions
        self._now = self._parameters()
        self._versions = [t._version for t in self._now]
        self._made: dict[Any, tuple[list[Tensor], Tensor]] = {}
        self._get()

    def _parameters(self) -> list[Tensor]:
        g = self._generator
        return [g.weight_in, g.bias_in, g.weight_out, g.bias_out, *(m.embedding for m in self._convolutions)]

    def _get(self) -> tuple[list[Tensor], Tensor]:
        """Kernels and penalty; made again where autocast or the grad mode is not what it was when they were made."""
        mode = torch.is_grad_enabled(), autocast_type(self._now[0].device.type)
        if mode not in self._made:
            self._made[mode] = self._generator.assemble([m.embedding for m in self._convolutions], penalty=True)
        return self._made[mode]

    def check(self) -> None:
        """Raises RuntimeError where a parameter is not what the kernels were made of."""
        if torch.compiler.is_compiling():  # no graph sees versions; the check at the block's end does
            return
        now = self._parameters()
        changed = [
            i for i, (t, was, version) in enumerate(zip(now, self._now, self._versions, strict=True))
            if t is not was or t._version != version
        ]  # fmt: skip
        if changed:
            names = ["weight_in", "bias_in", "weight_out", "bias_out"]
            names += [f"the embedding of convolution {i}" for i in range(len(now) - 4)]
            raise RuntimeError(
                f"the kernels are stale: {', '.join(names[i] for i in changed)} changed inside assembled(); "
                "step the optimiser after the block, or enter it again"
            )

    @property
    def kernels(self) -> list[Tensor]:
        """[out, in, kh, kw] of every convolution, in the order of model.modules()."""
        self.check()
        return self._get()[0]

    @property
    def penalty(self) -> Tensor:
        """[], float32 at least: the sum of the squares of all kernels' elements, differentiable."""
        self.check()
        return self._get()[1]


class HyperConv2d(nn.Module):
    """A 2-d convolution whose kernel is assembled from generated tiles: nn.Conv2d's equation with generator(embedding).

    Args:
        in_channels, out_channels: multiples of the tile's N_in and N_out.
        generator: TileHypernetwork, a submodule that several convolutions share. It fixes the kernel's size.
        stride, padding, dilation: as in nn.Conv2d, padding also "same" or "valid".
        bias: whether outputs have one.
        device, dtype: of the parameters.

    Parameters: embedding [in_channels / N_in, out_channels / N_out, Z], initialised as generator.init says; bias [out],
    which starts at 0; the generator's.

    Raises ValueError, naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        generator: TileHypernetwork,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(generator, TileHypernetwork):
            raise TypeError(f"generator must be an hf.nn.TileHypernetwork; got {type(generator).__name__}")
        sizes = {"in_channels": (in_channels, "N_in"), "out_channels": (out_channels, "N_out")}
        for (name, (channels, size)), unit in zip(sizes.items(), generator.tile, strict=True):
            check_positive(name, channels)
            if channels % unit:
                raise ValueError(f"{name} must be a multiple of the tile's {size} = {unit}; got {channels}")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f"padding must be a number, a pair, 'same' or 'valid'; got {padding!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.generator = generator
        rows, cols = in_channels // generator.tile[0], out_channels // generator.tile[1]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Parameter(torch.empty(rows, cols, generator.embedding_size, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self._assembly: tuple[Assembly, int] | None = None  # kernels made at once, and the place of this one's
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The values of the generator's `init`; the bias 0."""
        if self.generator.init == "he":
            fan_in = self.in_channels * math.prod(self.generator.kernel_size)
            nn.init.normal_(self.embedding, std=math.sqrt(2 / fan_in))
        else:
            nn.init.trunc_normal_(self.embedding, std=_PAPER_STD, a=-2 * _PAPER_STD, b=2 * _PAPER_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """The kernel [out, in, kh, kw], differentiable; inside `assembled` one of those made at once."""
        if self._assembly is None:
            return self.generator(self.embedding)
        assembly, place = self._assembly
        return assembly.kernels[place]

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W'], as nn.Conv2d; also without N."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, padding={self.padding}"


def _pair(name: str, value: object) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name} must be a positive whole number or a pair of them; got {value!r}")
    for part in pair:
        check_positive(name, part)
    return int(pair[0]), int(pair[1])
