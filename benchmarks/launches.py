"""Launches of every Triton kernel in every configuration that ships, for compiling them without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from hyperfast.kernels.coord_grid import grid_eval, grid_moments, grid_render
from hyperfast.kernels.coord_grid_backward import grid_eval_backward, grid_moments_backward, grid_render_backward
from hyperfast.kernels.ensemble import ensemble_sums
from hyperfast.kernels.gauge import gauge, gauge_backward
from hyperfast.kernels.hyper_lstm import hyper_lstm as hyper_lstm_forward
from hyperfast.kernels.hyper_lstm_backward import hyper_lstm_backward
from hyperfast.kernels.kde import kde, kde_backward
from hyperfast.kernels.nn_entropy import nearest_neighbor, nearest_neighbor_backward
from hyperfast.kernels.target_net import batched_mlp, batched_mlp_backward
from hyperfast.kernels.target_net_cnn import batched_cnn
from hyperfast.kernels.target_net_cnn_backward import batched_cnn_backward
from hyperfast.kernels.target_net_dropout import dropout
from hyperfast.kernels.tiled_conv import assemble, assemble_backward

from hyperfast.models import targets
from hyperfast.nn import TargetNet
from hyperfast.ops.hyper_lstm import encode
from hyperfast.plan import CNN, MLP, Activation, Conv
from hyperfast.plan_steps import CLOSE, LINEAR, OPEN, Step, Steps
from hyperfast.reference import coord_grid as coord_grid_reference
from hyperfast.reference import hyper_lstm as hyper_lstm_reference
from hyperfast.reference import hyper_lstm_rnn as hyper_rnn_reference
from hyperfast.reference import tiled_conv as tiled_conv_reference
from hyperfast.reference.hyper_lstm import Options

Launch = tuple[str, Callable[[], object]]

# Name, dtype of x, dtype of theta, torch.set_float32_matmul_precision.
MAIN_KINDS = [
    ("float32", torch.float32, torch.float32, "highest"),
    ("bfloat16", torch.bfloat16, torch.bfloat16, "highest"),
]
MORE_KINDS = [
    ("tf32", torch.float32, torch.float32, "high"),
    ("float16", torch.float16, torch.float16, "highest"),
    ("float32, theta bfloat16", torch.float32, torch.bfloat16, "highest"),
]


def _at(precision: str, launch: Callable[..., object], *arguments: object) -> None:
    """Calls `launch` at a float32 precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        launch(*arguments)
    finally:
        torch.set_float32_matmul_precision(before)


def target_net(short: bool) -> Iterator[Launch]:
    cos, relu = Activation("cos"), Activation("relu")
    shapes = {"2-32-64-256-64-3": (cos, (2, 32, 64, 256, 64, 3))}
    if not short:
        shapes |= {
            "1-100-1": (relu, (1, 100, 1)),
            "784-64-10": (relu, (784, 64, 10)),
            "96-200-300": (relu, (96, 200, 300)),
        }
    for shape, (activation, widths) in shapes.items():
        mlp = MLP(widths, (activation,) * (len(widths) - 1), (True,) * (len(widths) - 1))
        for kind, x_type, theta_type, precision in MAIN_KINDS + ([] if short else MORE_KINDS):
            x = torch.zeros(2, 256, widths[0], dtype=x_type)
            theta = torch.zeros(2, mlp.num_weights, dtype=theta_type)
            gy = torch.zeros(2, 256, widths[-1], dtype=x_type)
            backward = (gy, x, theta, None, mlp, True, True, False)
            yield f"{shape} {kind}", partial(_at, precision, batched_mlp, x, theta, None, mlp)
            yield f"{shape} {kind} backward", partial(_at, precision, batched_mlp_backward, *backward)


def target_net_cnn(short: bool) -> Iterator[Launch]:
    """The papers' targets; beyond them a strided run with an odd pool and tanh, of one image of shared inputs."""
    leaky = Activation("leaky_relu", 0.01)
    padded = [Conv(i, o, (5, 5), padding=(2, 2), activation=Activation("relu"), pool=2) for i, o in ((1, 32), (32, 16))]
    valid = [Conv(i, o, (3, 3), bias=False, activation=leaky, pool=2) for i, o in ((3, 16), (16, 32), (32, 64))]
    strided = [
        Conv(3, 64, (7, 7), (2, 2), (3, 3), activation=Activation("tanh"), pool=3),
        Conv(64, 128, (3, 3), activation=Activation("gelu")),
    ]
    shapes = {"deutsch": (padded, (32, 1, 28, 28))}
    if not short:
        shapes |= {"cifar": (valid, (32, 3, 32, 32)), "strided": (strided, (1, 3, 64, 64))}
    for shape, (layers, size) in shapes.items():
        cnn = CNN(tuple(layers))
        for kind, x_type, theta_type, precision in MAIN_KINDS + ([] if short else MORE_KINDS):
            x = torch.zeros(*(() if shape == "strided" else (2,)), *size, dtype=x_type)
            theta = torch.zeros(2, cnn.num_weights, dtype=theta_type)
            gy = torch.zeros(2, size[0], *cnn.out_shape(*size[2:]), dtype=x_type)
            backward = (gy, x, theta, None, cnn, True, True, False)
            yield f"{shape} {kind}", partial(_at, precision, batched_cnn, x, theta, None, cnn)
            yield f"{shape} {kind} backward", partial(_at, precision, batched_cnn_backward, *backward)


def ensemble(short: bool) -> Iterator[Launch]:
    for classes in (10,) if short else (10, 1000):
        yield f"C={classes}", partial(ensemble_sums, torch.zeros(4, 256, classes), True, True, True, True)


def target_net_dropout(short: bool) -> Iterator[Launch]:
    seed = torch.zeros(1, dtype=torch.int64)
    for features in (64,) if short else (3, 64, 3136):
        for dtype in (torch.float32,) if short else (torch.float32, torch.bfloat16, torch.float16):
            x = torch.zeros(1, 2, 128, features, dtype=dtype)
            case = f"H={features} {str(dtype).removeprefix('torch.')}"
            yield case, partial(dropout, x, seed, 1, 1 << 31, 2.0)


def fix_gauge(short: bool) -> Iterator[Launch]:
    """The papers' targets, and wide layers without biases of which none stays in one tile."""
    wide = torch.nn.Sequential(
        *(torch.nn.Linear(i, o, bias=False) for i, o in ((3000, 300), (300, 2500), (2500, 1)))
    )  # fmt: skip
    templates = {"deutsch": targets.deutsch_mnist()}
    if not short:
        templates |= {"hypergan mnist": targets.hypergan_mnist(), "wide": wide}
    for shape, template in templates.items():
        plan = TargetNet(template).plan
        rows = plan.gauge.rows(logits=True)
        for dtype in (torch.float32,) if short else (torch.float32, torch.bfloat16, torch.float16):
            theta = torch.zeros(2, plan.num_weights, dtype=dtype)
            scales = torch.zeros(2, sum(row.filters for row in rows))
            case = f"{shape} {str(dtype).removeprefix('torch.')}"
            yield case, partial(gauge, theta, rows)
            yield f"{case} backward", partial(gauge_backward, theta, theta, scales, rows)


def nn_entropy(short: bool) -> Iterator[Launch]:
    """Few rows, all pairs, and screening: N <= 2048, more, long rows, and a rectangle of rows."""
    shapes = {"N=32 D=20018": (32, 20018, 32), "N=3000 D=20018": (3000, 20018, 3000)}
    if not short:
        shapes |= {
            "N=600 D=5": (600, 5, 600),
            "N=1000 D=20018": (1000, 20018, 1000),
            "N=3000 D=20018, 1000 rows": (3000, 20018, 1000),
            "N=3000 D=40000": (3000, 40000, 3000),
        }
    for shape, (n, features, rows) in shapes.items():
        for p in (1, 2):
            theta, distance = torch.zeros(n, features), torch.zeros(n)
            backward = (distance, theta, distance, torch.zeros(n, dtype=torch.int64), 0, rows, p)
            yield f"{shape} p={p}", partial(nearest_neighbor, theta, 0, rows, p)
            yield f"{shape} p={p} backward", partial(nearest_neighbor_backward, *backward)


def kde_cross_entropy(short: bool) -> Iterator[Launch]:
    """The paper's digits, with the gradients that training asks for and with all; fewer points than a block; one centre."""
    shapes = {"L=784 n=400": (784, 400)}
    if not short:
        shapes |= {"L=20 n=400": (20, 400), "L=784 n=1": (784, 1)}
    for shape, (length, n) in shapes.items():
        tensors = [torch.zeros(2, *size) for size in ((length, 2), (n, 2), (length,), ())]
        g, saved = torch.zeros(2), torch.zeros(2, 2, length)
        yield shape, partial(kde, *tensors)
        wanted = {"mu": (False, True, False, False), "all": (True,) * 4}
        if not short:
            wanted |= {
                "points": (True, False, False, False),
                "weight": (False, False, True, False),
                "sigma": (False, False, False, True),
            }
        for kind, wants in wanted.items():
            yield f"{shape} backward {kind}", partial(kde_backward, g, *tensors, saved, *wants)


def hyper_lstm(short: bool) -> Iterator[Launch]:
    """The paper's sizes, with dropout and both outputs that embeddings may read; an LSTM; few units, no layer norm.

    HyperRNN at the same sizes.
    """
    # H, K, Z, layer norm, embeddings from the previous output, probability of dropping.
    shapes = {"ptb": (1000, 128, 4, True, False, 0.1)}
    if not short:
        shapes |= {
            "ptb previous": (1000, 128, 4, True, True, 0.0),
            "enwik8": (1800, 256, 64, True, False, 0.1),
            "LSTM H=1000": (1000, 0, 0, True, False, 0.1),
            "LSTM H=1800": (1800, 0, 0, False, False, 0.0),
            "H=20": (20, 12, 3, False, False, 0.0),
        }
    for shape, (h, k, z, norm, previous, p) in shapes.items():
        for kind, x_type, weight_type, _ in MAIN_KINDS + (MORE_KINDS[1:] if shape == "ptb" and not short else []):
            x, state, *parts = hyper_lstm_reference.make_inputs(2, 2, 5, h, max(k, 1), max(z, 1), layer_norm=norm)
            none = torch.zeros(0)
            weights = [
                none if t is None or (i >= 5 and not k) else t for i, t in enumerate(t for p in parts for t in p)
            ]
            states = [*state.main, *(t[:, :k] for t in state.hyper)]
            tensors = [*(t.to(x_type) for t in (x, *states)), *(t.to(weight_type) for t in weights)]
            spec = [2, 2], torch.zeros(1, dtype=torch.int64), (int(previous), 0, 0), (1.0, p, p)
            outputs = [torch.zeros(4, n, dtype=x_type) for n in (h, h, k, k)] + [torch.zeros(4, 4 * (h + k))]
            yield f"{shape} {kind}", partial(hyper_lstm_forward, tensors, *spec, True)
            backward = (outputs[:4], tensors, outputs, *spec, True, True)
            yield f"{shape} {kind} backward", partial(hyper_lstm_backward, *backward)
    yield from _hyper_rnn(short)


def _hyper_rnn(short: bool) -> Iterator[Launch]:
    # H, K, Z, kind of the cells.
    shapes = {"rnn ptb": (1000, 128, 4, "tanh")}
    if not short:
        shapes |= {"rnn enwik8": (1800, 256, 64, "tanh"), "rnn H=20": (20, 12, 3, "relu")}
    for shape, (h, k, z, cell) in shapes.items():
        for kind, x_type, weight_type, _ in MAIN_KINDS + (MORE_KINDS[1:] if shape == "rnn ptb" and not short else []):
            x, state, hyper_state, *parts = hyper_rnn_reference.make_inputs(2, 2, 5, h, k, z)
            none, c = torch.zeros(0), torch.zeros(2, 0)
            w, hyper, scaling = ([t.to(weight_type) for t in part] for part in parts)
            states = [t.to(x_type) for t in (x, state, c, hyper_state, c)]
            tensors = [*states, *w, none, none, *hyper, none, none, *scaling]
            spec = [2, 2], torch.zeros(0, dtype=torch.int64), *encode(Options(cell=cell))
            outputs = [torch.zeros(4, n, dtype=x_type) for n in (h, 0, k, 0)] + [torch.zeros(4, h + k)]
            yield f"{shape} {kind}", partial(hyper_lstm_forward, tensors, *spec, True)
            backward = (outputs[:4], tensors, outputs, *spec, True, True)
            yield f"{shape} {kind} backward", partial(hyper_lstm_backward, *backward)


def tiled_conv(short: bool) -> Iterator[Launch]:
    """A wide resnet's tile; MNIST's; a hidden layer past one block, with the penalty."""
    # Z, d, tile, kernel size.
    shapes = {"wrn": (64, 64, (16, 16), (3, 3))}
    if not short:
        shapes |= {"mnist": (4, 4, (16, 16), (7, 7)), "d=200": (96, 200, (8, 32), (1, 1))}
    for shape, sizes in shapes.items():
        for kind, z_type, weight_type, precision in MAIN_KINDS + ([] if short else MORE_KINDS):
            zs, weights = tiled_conv_reference.make_inputs([(4, 8), (8, 8)], *sizes)
            zs, weights = [z.to(z_type) for z in zs], [w.to(weight_type) for w in weights]
            grads = [torch.zeros(z.shape[0] * z.shape[1] * weights[0].shape[0] * weights[3].numel(), dtype=z_type)
                     for z in zs]  # fmt: skip
            yield f"{shape} {kind}", partial(_at, precision, assemble, zs, weights, shape == "d=200")
            backward = (grads, torch.zeros(0), [], zs, weights, True, True)
            yield f"{shape} {kind} backward", partial(_at, precision, assemble_backward, *backward)


def coord_grid(short: bool) -> Iterator[Launch]:
    """The paper's target with the scale as an input; with the residual around its wide layer, and backward, whose products
    are target_net's; a network that does not fit on chip, and statistics behind its wide layer."""
    cos, sigmoid = Activation("cos"), Activation("sigmoid")
    plain = [Step(LINEAR, i, o, cos, True) for i, o in ((3, 32), (32, 64), (64, 256), (256, 64))]
    last = Step(LINEAR, 64, 3, sigmoid, True)
    residual = [*plain[:2], Step(OPEN, 64, 64), *plain[2:], Step(CLOSE, 64, 64), last]
    wide = [Step(LINEAR, 3, 256, cos, True), plain[3], last]
    on_chip = grid_eval, grid_render
    cases = [("2+1-32-64-256-64-3", [*plain, last], MAIN_KINDS, on_chip[1:])]
    if not short:
        cases += [
            ("2+1-32-64-256-64-3", [*plain, last], MAIN_KINDS, on_chip[:1]),
            ("2+1-32-64-256-64-3", [*plain, last], MORE_KINDS[:2], on_chip),
            ("residual", residual, MAIN_KINDS, (*on_chip, grid_eval_backward)),
            ("residual", residual, MAIN_KINDS[:1], (grid_render_backward,)),
            ("wide", wide, MAIN_KINDS[:1], (grid_render,)),
            ("wide statistics", wide[:1], MAIN_KINDS[:1], (grid_moments, grid_moments_backward)),
        ]
    patches, geometry = coord_grid_reference.place_patches(torch.zeros(3, 2), 16, (80, 80), (2.5, 2.5))
    places = {"grid_render": (*patches, (80, 80), geometry)}
    for name, steps, kinds, launchers in cases:
        program = Steps(tuple(steps))
        for kind, _, theta_type, precision in kinds:
            theta, extra = torch.zeros(3, program.num_weights, dtype=theta_type), torch.zeros(3, 1)
            outputs = {
                "grid_eval": (torch.zeros(3, 4096, program.outputs, dtype=theta_type), extra),
                "grid_moments": (torch.zeros(3, 2, program.outputs),) * 2,
                "grid_render": (torch.zeros(program.outputs, 80, 80), torch.ones(80, 80)),
            }
            for launcher in launchers:
                forward = launcher.__name__.removesuffix("_backward")
                call = (theta, extra, *places.get(forward, (None, None, (64, 64), ())), program)
                if launcher.__name__ != forward:
                    call = (*outputs[forward], *call, True, True)
                yield f"{name} {launcher.__name__} {kind}", partial(_at, precision, launcher, *call)


FAMILIES = {
    "target_net": target_net,
    "target_net_cnn": target_net_cnn,
    "target_net_dropout": target_net_dropout,
    "ensemble": ensemble,
    "gauge": fix_gauge,
    "hyper_lstm": hyper_lstm,
    "kde": kde_cross_entropy,
    "nn_entropy": nn_entropy,
    "tiled_conv": tiled_conv,
    "coord_grid": coord_grid,
}
