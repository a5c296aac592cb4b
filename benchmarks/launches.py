"""Launches of every Triton kernel in every configuration that ships, for compiling them without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from hyperfast.kernels.ensemble import ensemble_sums
from hyperfast.kernels.target_net import batched_mlp, batched_mlp_backward
from hyperfast.kernels.target_net_dropout import dropout

from hyperfast.plan import MLP, Activation

Launch = tuple[str, Callable[[], object]]


def target_net(short: bool) -> Iterator[Launch]:
    cos, relu = Activation("cos"), Activation("relu")
    shapes = {"2-32-64-256-64-3": (cos, (2, 32, 64, 256, 64, 3))}
    if not short:
        shapes |= {
            "1-100-1": (relu, (1, 100, 1)),
            "784-64-10": (relu, (784, 64, 10)),
            "96-200-300": (relu, (96, 200, 300)),
        }
    kinds = [
        ("float32", torch.float32, torch.float32, "highest"),
        ("bfloat16", torch.bfloat16, torch.bfloat16, "highest"),
    ]
    if not short:
        kinds += [
            ("tf32", torch.float32, torch.float32, "high"),
            ("float16", torch.float16, torch.float16, "highest"),
            ("float32, theta bfloat16", torch.float32, torch.bfloat16, "highest"),
        ]
    for shape, (activation, widths) in shapes.items():
        mlp = MLP(widths, (activation,) * (len(widths) - 1), (True,) * (len(widths) - 1))
        for kind, x_type, theta_type, precision in kinds:
            x = torch.zeros(2, 256, widths[0], dtype=x_type)
            theta = torch.zeros(2, mlp.num_weights, dtype=theta_type)
            gy = torch.zeros(2, 256, widths[-1], dtype=x_type)

            def launch(backward: bool, x=x, theta=theta, gy=gy, mlp=mlp, precision=precision) -> None:
                before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision(precision)
                try:
                    if backward:
                        batched_mlp_backward(gy, x, theta, None, mlp, True, True, False)
                    else:
                        batched_mlp(x, theta, None, mlp)
                finally:
                    torch.set_float32_matmul_precision(before)

            yield f"{shape} {kind}", partial(launch, False)
            yield f"{shape} {kind} backward", partial(launch, True)


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


FAMILIES = {"target_net": target_net, "target_net_dropout": target_net_dropout, "ensemble": ensemble}
