"""Convolution kernels assembled from generated tiles (HyperNetworks, section 3.1), in plain PyTorch.

Shapes: z [rows, cols, Z] the embeddings of one kernel, a tile each; weight_in [N_in, d, Z], bias_in [N_in, d],
weight_out [N_out, kh, kw, d], bias_out [N_out, kh, kw] the generator; K [cols * N_out, rows * N_in, kh, kw] the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Generator(NamedTuple):
    """The two-layer linear hypernetwork: weight_in, bias_in, weight_out, bias_out."""

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor


def assemble_kernel(z: Tensor, generator: Generator) -> Tensor:
    """One kernel: equation 2 for every tile, and the tiles side by side as in equation 3.

    a_i = W_i z + B_i        tile[o, i] = <W_out[o], a_i> + B_out[o]        K = tiles, rows of them along the inputs
    """
    weight_in, bias_in, weight_out, bias_out = generator
    a = torch.einsum("idz,rcz->rcid", weight_in, z) + bias_in
    tiles = torch.einsum("oyxd,rcid->coriyx", weight_out, a) + bias_out[:, None, None]
    return tiles.flatten(2, 3).flatten(0, 1)


def assemble_kernels(zs: Sequence[Tensor], generator: Generator) -> tuple[list[Tensor], Tensor]:
    """The kernel of each z, and the penalty: the sum of the squares of all their elements, in float32 at least."""
    kernels = [assemble_kernel(z, generator) for z in zs]
    penalty = torch.zeros((), dtype=_wide(generator.bias_out), device=generator.bias_out.device)
    for k in kernels:
        penalty = penalty + k.to(penalty.dtype).square().sum()
    return kernels, penalty


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def make_inputs(
    grids: Sequence[tuple[int, int]],
    embedding: int = 64,
    hidden: int = 64,
    tile: tuple[int, int] = (16, 16),
    kernel_size: tuple[int, int] = (3, 3),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[list[Tensor], Generator]:
    """Embeddings of kernels with (rows, cols) tiles each, and a generator; kernels have elements of about N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    (n_in, n_out), (kh, kw) = tile, kernel_size

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    zs = [draw(rows, cols, embedding) for rows, cols in grids]
    weights = (
        draw(n_in, hidden, embedding, scale=max(embedding, 1) ** -0.5), draw(n_in, hidden, scale=0.3),
        draw(n_out, kh, kw, hidden, scale=max(hidden, 1) ** -0.5), draw(n_out, kh, kw, scale=0.3),
    )  # fmt: skip
    return zs, Generator(*weights)


def wide_resnet(width: int, blocks: int = 6) -> list[tuple[int, int]]:
    """Tiles (rows, cols) of 16 x 16 in every generated kernel of WRN 40-`width`, in order (table 1 of the paper)."""
    grids, before = [], 1
    for group in (1, 2, 4):
        for _ in range(2 * blocks):
            grids.append((before, group * width))
            before = group * width
    return grids
