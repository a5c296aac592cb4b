"""Exported programs: of any number of networks, inputs and steps, written to a file and read again."""

import io

import pytest
import torch
from torch import nn

import hyperfast as hf

ANY = torch.export.Dim.DYNAMIC
MLP = hf.nn.TargetNet(nn.Sequential(nn.Linear(2, 16), hf.nn.Cos(), nn.Linear(16, 3)))
CNN = hf.nn.TargetNet(
    nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)
    )
)
HYPER_LSTM = hf.nn.HyperLSTM(4, 8, 6)
GENERATOR = hf.nn.TileHypernetwork(8, 8, tile=(4, 4))


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def steps(t, b):
    return (torch.randn(t, b, 4),)


def images(n, b):
    return torch.randn(n, 1, 8, 8), CNN.init(b)


def patches(n, _):
    return MLP.init(n), torch.randint(0, 5, (n, 2))


def point_sets(b, n):
    return torch.randn(9, 2), torch.randn(b, n, 2), torch.rand(b, 9)


# What is exported, its inputs of two sizes, the dimensions that are free.
CASES = {
    "TargetNet": (CNN, images, ({0: ANY}, {0: ANY})),
    "HyperLSTM": (HYPER_LSTM, steps, ({0: ANY, 1: ANY},)),
    "HyperLSTM with scales": (Of(lambda x: HYPER_LSTM(x, return_scales=True)), steps, ({0: ANY, 1: ANY},)),
    "LayerNormLSTM": (hf.nn.LayerNormLSTM(4, 8, num_layers=2), steps, ({0: ANY, 1: ANY},)),
    "HyperRNN": (hf.nn.HyperRNN(4, 8, 6), steps, ({0: ANY, 1: ANY},)),
    "HyperConv2d": (
        hf.nn.HyperConv2d(4, 8, GENERATOR), lambda n, h: (torch.randn(n, 4, h, 7),), ({0: ANY, 2: ANY},)
    ),
    "eval_grid": (Of(lambda theta: hf.ops.eval_grid(theta, MLP, (5, 7))), lambda b, _: (MLP.init(b),), ({0: ANY},)),
    "render_patches": (
        Of(lambda theta, origins: hf.ops.render_patches(theta, MLP, origins, 8, (9, 9), 2, check=False)),
        patches, ({0: ANY}, {0: ANY}),
    ),
    "nearest_neighbor": (Of(hf.ops.nearest_neighbor), lambda n, _: (torch.randn(n, 40),), ({0: ANY},)),
    "nn_entropy": (Of(hf.ops.nn_entropy), lambda n, d: (torch.randn(n, 10 * d),), ({0: ANY, 1: ANY},)),
    "fix_gauge": (Of(lambda theta: hf.ops.fix_gauge(theta, CNN)), lambda b, _: (CNN.init(b),), ({0: ANY},)),
    "kde_cross_entropy": (
        Of(lambda x, mu, w: hf.ops.kde_cross_entropy(x, mu, w, 0.3)), point_sets, ({}, {0: ANY, 1: ANY}, {0: ANY}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_16_any_size_of_a_program_from_a_file(name):
    module, make_inputs, free = CASES[name]
    module = module.eval()
    free = {"inputs": free} if isinstance(module, Of) else free
    with torch.no_grad():
        program = torch.export.export(module, make_inputs(7, 5), dynamic_shapes=free)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    program = torch.export.load(file).module()
    for sizes in ((7, 5), (12, 6), (6, 11)):
        inputs = make_inputs(*sizes)
        for got, expected in zip(
            *(torch.utils._pytree.tree_leaves(f(*inputs)) for f in (program, module)), strict=True
        ):
            assert torch.equal(got, expected)
