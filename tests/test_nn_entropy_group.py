"""nn_entropy among ranks against one process: two and three processes over gloo."""

import os

import pytest
import torch
import torch.distributed as dist
from ranks import errors_after_a_loss, on_ranks
from torch import nn

import hyperfast as hf
from hyperfast.reference.nn_entropy import make_inputs

ROWS = {2: [5, 8], 3: [6, 0, 9]}  # of each rank
FEATURES, NOISE, BATCH = 37, 4, 6


def generator() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(NOISE, 16), nn.Tanh(), nn.Linear(16, FEATURES))


def noise(world: int) -> torch.Tensor:
    return torch.randn(world * BATCH, NOISE, generator=torch.Generator().manual_seed(4))


def measured(rank: int, world: int) -> dict:
    """What a rank computes, for the test to compare."""
    out, group = {}, dist.group.WORLD
    own = make_inputs(sum(ROWS[world]), FEATURES).split(ROWS[world])[rank]
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for name, where, backend, p in (
        ("cpp", group, "cpp", 2),
        ("absolute", group, "cpp", 1),
        ("mesh", mesh, "cpp", 2),
        ("reference", group, "reference", 2),
    ):
        theta = own.clone().requires_grad_()
        with hf.backend(backend):
            value = hf.ops.nn_entropy(theta, dim=NOISE, p=p, group=where)
        (2 * value).backward()
        out[name] = value.detach(), theta.grad
        if name != "mesh":
            theta = own.double().requires_grad_()
            with hf.backend(backend):
                out[f"{name} twice"] = penalty_gradient(theta, p=p, group=where)
    # DistributedDataParallel averages over ranks what is to be a sum: hence the factor.
    model = nn.parallel.DistributedDataParallel(generator())
    theta = model(noise(world).split(BATCH)[rank])
    (-world * hf.ops.nn_entropy(theta, dim=NOISE, group=group)).backward()
    out["ddp"] = [parameter.grad for parameter in model.parameters()]
    out["errors"] = [
        refused(torch.zeros(2, 3 + rank), group),
        refused(torch.zeros(int(rank == 0), 3), group),
        refused(torch.zeros(2, 3, dtype=torch.float64 if rank else torch.float32), group),
    ]
    return out


def penalty_gradient(theta: torch.Tensor, **options) -> torch.Tensor:
    """Gradient of the squared norm of the entropy's squared gradient: through both arguments of the first backward."""
    h = hf.ops.nn_entropy(theta, dim=NOISE, **options)
    (gradient,) = torch.autograd.grad(h.square(), theta, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), theta)[0]


def between_two_calls_one_dies(rank: int, world: int) -> None:
    theta = make_inputs(4, FEATURES, seed=rank)
    hf.ops.nn_entropy(theta, group=dist.group.WORLD)
    if rank == world - 1:
        os._exit(1)
    hf.ops.nn_entropy(theta, group=dist.group.WORLD)


def test_20_a_killed_rank_is_an_error_not_a_hang(tmp_path):
    assert all(errors_after_a_loss(between_two_calls_one_dies, 3, tmp_path))


def refused(theta, group) -> str:
    try:
        hf.ops.nn_entropy(theta, group=group)
    except ValueError as wrong:
        return str(wrong)
    return "nothing was raised"


@pytest.mark.parametrize("world", [2, 3])
def test_20_ranks_equal_one_process(world, tmp_path):
    ranks = on_ranks(measured, world, tmp_path)
    for name, p in (("cpp", 2), ("absolute", 1), ("mesh", 2), ("reference", 2)):
        theta = make_inputs(sum(ROWS[world]), FEATURES).requires_grad_()
        value = hf.ops.nn_entropy(theta, dim=NOISE, p=p)
        (2 * value).backward()
        gathered = torch.cat([rank[name][1] for rank in ranks])
        if name != "mesh":
            twice = penalty_gradient(theta.detach().double().requires_grad_(), p=p)
            torch.testing.assert_close(torch.cat([rank[f"{name} twice"] for rank in ranks]), twice)
        assert all(torch.equal(rank[name][0], ranks[0][name][0]) for rank in ranks)
        if name == "reference":
            torch.testing.assert_close(ranks[0][name][0], value.detach())
            torch.testing.assert_close(gathered, theta.grad)
        else:
            assert torch.equal(ranks[0][name][0], value.detach())
            assert torch.equal(gathered, theta.grad)

    model = generator()
    (-hf.ops.nn_entropy(model(noise(world)), dim=NOISE)).backward()
    for rank in ranks:
        for got, parameter in zip(rank["ddp"], model.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-5, atol=1e-6)
        features, rows, dtypes = rank["errors"]
        assert "theta must have the same features and dtype on every rank" in features
        assert "theta must have at least two rows among all ranks" in rows
        assert "theta must have the same features and dtype on every rank" in dtypes
