"""All generated kernels of a model, with the gradient, against tile by tile and against all tiles in a few products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperfast.ops import assemble_kernels
from hyperfast.reference import tiled_conv as reference
from hyperfast.reference.tiled_conv import Generator

from .case import Case
from .peers import installed

Z = HIDDEN = 64
TILE, KERNEL = (16, 16), (3, 3)


def cases(device: str = "cpu") -> list[Case]:
    return [
        _case("wrn 40-1", reference.wide_resnet(1)),
        _case("wrn 40-2", reference.wide_resnet(2)),
        _case("100 MB", [(30, 30)] * 12, long=True),
    ]


def _case(name: str, grids: list[tuple[int, int]], long: bool = False) -> Case:
    tiles = sum(math.prod(grid) for grid in grids)
    elements = math.prod(TILE) * math.prod(KERNEL)

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        zs, generator = reference.make_inputs(grids, Z, HIDDEN, TILE, KERNEL, device=device)
        return *generator, *zs

    peers, _ = installed({"hypnettorch": ("hypnettorch", _hypnettorch)})
    return Case(
        family="tiled_conv",
        name=name,
        shape={"kernels": len(grids), "tiles": tiles, "Z": Z, "d": HIDDEN, "tile": "16x16x3x3"},
        inputs=inputs,
        ours=lambda *tensors: assemble_kernels(tensors[4:], *tensors[:4]),
        reference=lambda *tensors: reference.assemble_kernels(tensors[4:], Generator(*tensors[:4]))[0],
        baselines={"eager": eager, "batched": batched, "careful": careful, **peers},
        flops=2 * elements * Z * (HIDDEN + tiles),
        flops_with_backward=2 * elements * Z * (4 * HIDDEN + 3 * tiles),
        bytes=4 * tiles * (elements + Z),
        gradient_of=tuple(range(4 + len(grids))),
        compiled=("careful", "batched"),
        yardsticks=tuple(peers),
        long=long,
    )


def eager(*tensors: Tensor) -> list[Tensor]:
    """Tile by tile, joined row by row, as public implementations have it."""
    weight_in, bias_in, weight_out, bias_out = tensors[:4]
    rows, bias = weight_out.flatten(0, 2), bias_out.flatten()
    kernels = []
    for z in tensors[4:]:
        columns = []
        for c in range(z.shape[1]):
            tiles = []
            for r in range(z.shape[0]):
                a = torch.matmul(weight_in, z[r, c]) + bias_in
                tile = torch.matmul(a, rows.t()) + bias
                tiles.append(tile.unflatten(1, bias_out.shape).transpose(0, 1))
            columns.append(torch.cat(tiles, 1))
        kernels.append(torch.cat(columns, 0))
    return kernels


def _cut(tiles: Tensor, zs: tuple[Tensor, ...], order: tuple[int, ...]) -> list[Tensor]:
    """All tiles, in order -> kernels. order: of (r, c, and the three parts of a tile) in (c, o, r, i, taps)."""
    parts = tiles.split([z.shape[0] * z.shape[1] for z in zs])
    kernels = [part.unflatten(0, z.shape[:2]).permute(order) for part, z in zip(parts, zs, strict=True)]
    return [k.reshape(k.shape[0] * k.shape[1], k.shape[2] * k.shape[3], k.shape[4]) for k in kernels]


def batched(*tensors: Tensor) -> list[Tensor]:
    """All tiles of all kernels in two products, one a layer."""
    weight_in, bias_in, weight_out, bias_out = tensors[:4]
    n_out, kh, kw, hidden = weight_out.shape
    z = torch.cat([z.flatten(0, 1) for z in tensors[4:]])
    a = torch.addmm(bias_in.flatten(), z, weight_in.flatten(0, 1).t()).view(-1, hidden)
    tiles = torch.addmm(bias_out.flatten(), a, weight_out.view(-1, hidden).t())
    tiles = tiles.view(len(z), weight_in.shape[0], n_out, kh * kw)
    return [k.unflatten(2, (kh, kw)) for k in _cut(tiles, tensors[4:], (1, 3, 0, 2, 4))]


def _folded(weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor) -> tuple[Tensor, Tensor]:
    """Both layers as one, z to a tile's values in order (out, in, taps): its weight and bias."""
    n_out, kh, kw, hidden = weight_out.shape
    rows = weight_out.view(n_out, 1, kh * kw, hidden)
    bias = torch.matmul(rows, bias_in.unsqueeze(2)) + bias_out.view(n_out, 1, kh * kw, 1)
    return torch.matmul(rows, weight_in).flatten(0, 2), bias.flatten()


def careful(*tensors: Tensor) -> list[Tensor]:
    """Both layers folded into one, then all tiles in one product."""
    weight_in, _, weight_out, _ = tensors[:4]
    n_out, kh, kw, _ = weight_out.shape
    fold, bias = _folded(*tensors[:4])
    z = torch.cat([z.flatten(0, 1) for z in tensors[4:]])
    tiles = torch.addmm(bias, z, fold.t()).view(len(z), n_out, weight_in.shape[0], kh * kw)
    return [k.unflatten(2, (kh, kw)) for k in _cut(tiles, tensors[4:], (1, 2, 0, 3, 4))]


def _hypnettorch(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Its chunked network with the folded layer. A yardstick: chunks fill each kernel's memory in order, tile or not."""
    from hypnettorch.hnets.chunked_mlp_hnet import ChunkedHMLP

    (inputs, _, size), (outputs, kh, kw, _) = tensors[0].shape, tensors[2].shape
    shapes = [[z.shape[0] * outputs, z.shape[1] * inputs, kh, kw] for z in tensors[4:]]
    network = ChunkedHMLP(
        shapes, outputs * inputs * kh * kw, chunk_emb_size=size, cond_chunk_embs=True, cond_in_size=0, layers=(),
        no_uncond_weights=True, no_cond_weights=True, verbose=False,
    )  # fmt: skip
    z = torch.cat([z.flatten(0, 1) for z in tensors[4:]])
    return tuple(network(cond_id=0, weights={"uncond_weights": [*_folded(*tensors[:4])], "cond_weights": [z]}))
