"""Ensembles whose members are shared out over ranks, and ensembles that are gone on with."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import errors_after_a_loss, on_ranks
from torch import nn

import hyperfast as hf

EVERY = ("mean_prob", "votes", "entropy", "disagreement", "mean", "var", "member_accuracy")
MEMBERS = 23


def problem():
    torch.manual_seed(5)
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)))
    theta = 3 * net.init(MEMBERS, torch.Generator().manual_seed(6))
    return net, torch.randn(31, 6), theta, torch.randint(4, (31,))


def fields(r):
    return {name: getattr(r, name) for name in EVERY if getattr(r, name) is not None}


def close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value.dtype == torch.int64:
            assert torch.equal(found[name], value), name
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


def failure(call) -> str:
    try:
        call()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing was raised"


class Killed(Exception):
    """What a progress function raises in place of a kill."""


def stop_at(members):
    def progress(done, total):
        if done >= members:
            raise Killed

    return progress


# ---- ranks ------------------------------------------------------------------------------------------


def measured(rank, world, folder):
    net, x, theta, targets = problem()
    group, mesh = dist.group.WORLD, dist.device_mesh.init_device_mesh("cpu", (world,))
    sampler = lambda indices: theta[indices]

    def failing(indices):
        if rank == 1:
            raise ArithmeticError("no such network")
        return theta[indices]

    predict = hf.ensemble.predict
    whole = fields(predict(net, x, theta, EVERY, group=group, targets=targets))
    batches = fields(predict(net, iter(x.split(10)), (sampler, MEMBERS), EVERY, 3, mesh, targets=targets))
    few = fields(predict(net, x, theta[:2], EVERY, group=group, targets=targets))
    errors = [
        failure(lambda: predict(net, x, (failing, MEMBERS), group=group)),
        failure(lambda: predict(net, x, theta[: MEMBERS - rank // 2], group=group)),
        failure(lambda: predict(net, x + rank, theta, group=group)),
        failure(lambda: predict(net, x, theta, "mode" if rank else "votes", group=group)),
    ]
    partial = Path(folder, "partial")
    failure(lambda: predict(net, x, theta, EVERY, 2, group, stop_at(4) if rank == 2 else None, targets=targets, partial=partial))  # fmt: skip
    kept = sorted(path.name for path in Path(folder).glob("partial*"))
    dist.barrier()  # all have looked
    resumed = fields(predict(net, x, theta, EVERY, 2, group, targets=targets, partial=partial))
    return {"whole": whole, "batches": batches, "few": few, "errors": errors, "kept": kept, "resumed": resumed}


@pytest.mark.parametrize("world", [4])
def test_20_ranks_have_the_answer_of_one_process(world, tmp_path):
    net, x, theta, targets = problem()
    ranks = on_ranks(measured, world, tmp_path, str(tmp_path))
    alone = fields(hf.ensemble.predict(net, x, theta, EVERY, targets=targets))
    few = fields(hf.ensemble.predict(net, x, theta[:2], EVERY, targets=targets))
    for found in ranks:
        for name, expected in (("whole", alone), ("batches", alone), ("resumed", alone), ("few", few)):
            close(found[name], expected)
        assert all(torch.equal(v, ranks[0]["whole"][name]) for name, v in found["whole"].items())
    for rank, found in enumerate(ranks):
        failed, members, inputs, reduce = found["errors"]
        assert "no such network" in failed
        assert failed.startswith("ArithmeticError" if rank == 1 else "RuntimeError: predict failed on rank 1")
        assert members.startswith("ValueError: group: every rank must call predict with the same arguments")
        assert inputs.startswith("ValueError: group: every rank must call predict with the same arguments")
        assert "reduce must name some of" in reduce
        # Every rank but the one that was stopped kept all of its share.
        assert found["kept"] == ["partial.0of4", "partial.1of4", "partial.3of4"]
    assert not list(tmp_path.glob("partial*"))


def one_dies_among_its_members(rank, world):
    net, x, theta, _ = problem()

    def sampler(indices):
        if rank == world - 1:
            os._exit(1)
        return theta[indices]

    hf.ensemble.predict(net, x, (sampler, MEMBERS), group=dist.group.WORLD)


def test_20_a_killed_rank_is_an_error_not_a_hang(tmp_path):
    errors = errors_after_a_loss(one_dies_among_its_members, 3, tmp_path)
    assert all("was lost or does not answer" in words for words in errors)


# ---- training ---------------------------------------------------------------------------------------


def trainings(group, scale=1.0, members=7):
    """(theta of each form of batches, what progress was told)"""
    template = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 6, generator=generator), torch.randint(4, (40,), generator=generator)
    own = torch.randn(5, 7, 8, 6, generator=generator), torch.randint(4, (5, 7, 8), generator=generator)
    told: list[tuple[int, int]] = []

    def loss(outputs, targets):
        return scale * nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    def train(batches, **more):
        return hf.ensemble.train(template, members, batches, loss, steps=5, seed=3, group=group, lr=0.1, **more)

    found = {
        "tensors": train((x, y), batch_size=16, progress=lambda done, steps: told.append((done, steps))),
        "the same tensors": train((x, y), batch_size=16, same_batches=True, optimizer=torch.optim.SGD),
        "a function": train(lambda step: (own[0][step], own[1][step])),
        "an iterable": train([(x[:8], y[:8]), (x[8:16], y[8:16])], same_batches=True),
        "no step": hf.ensemble.train(template, members, (x, y), loss, steps=0, group=group),
    }
    return found, told


def trained(rank, world):
    group = dist.group.WORLD
    found, told = trainings(group)
    errors = [
        failure(lambda: trainings(group, members=1)),
        failure(lambda: trainings(group, members=7 - rank)),
        failure(lambda: trainings(group, scale="nothing" if rank == 1 else 1.0)),
    ]
    return found, told, errors


def test_20_ranks_train_the_networks_of_one_process(tmp_path):
    expected, told = trainings(None)
    for rank, (found, heard, (few, other, failed)) in enumerate(on_ranks(trained, 2, tmp_path)):
        assert heard == told == [(step, 5) for step in range(1, 6)]
        for name, theta in expected.items():
            assert torch.equal(found[name], theta), name
        assert few == "ValueError: members must be at least one for each of the 2 ranks; got 1"
        assert other.startswith("ValueError: group: every rank must call train with the same arguments")
        assert failed.startswith("TypeError" if rank == 1 else "RuntimeError: train failed on rank 1")


def one_dies_in_training(rank, world):
    def progress(done, steps):
        if rank == world - 1:
            os._exit(1)

    template, data = nn.Sequential(nn.Linear(6, 4)), (torch.randn(40, 6), torch.randn(40, 4))
    loss = lambda outputs, targets: (outputs - targets).square().mean((1, 2))
    hf.ensemble.train(template, 4, data, loss, steps=3, progress=progress, group=dist.group.WORLD)


def test_20_a_rank_killed_in_training_is_an_error_not_a_hang(tmp_path):
    errors = errors_after_a_loss(one_dies_in_training, 2, tmp_path)
    assert all("train: another rank of the group was lost or does not answer" in words for words in errors)


# ---- going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 20, 30, 68])
def test_a_prediction_goes_on_from_its_partial_sums(at, tmp_path, monkeypatch):
    """Bit by bit what one that was not interrupted gives, and no member is evaluated twice."""
    monkeypatch.setattr("hyperfast.ensemble_share._SECONDS", 0)
    net, x, theta, targets = problem()
    asked = []

    def sampler(indices):
        asked.extend(indices.tolist())
        return theta[indices]

    def predict(progress=None, **options):
        return hf.ensemble.predict(net, x.split(12), (sampler, MEMBERS), EVERY, 2, None, progress, targets=targets, **options)  # fmt: skip

    expected, path = fields(predict()), tmp_path / "partial"
    asked.clear()
    with pytest.raises(Killed):
        predict(stop_at(at), partial=path)
    assert path.exists()
    found = fields(predict(partial=path))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not path.exists()
    # Each call also asks for the first member, to know its partial sums again.
    assert len(asked) == 3 * MEMBERS + 2


def test_partial_sums_of_another_call_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperfast.ensemble_share._SECONDS", 0)
    net, x, theta, _ = problem()
    path = tmp_path / "partial"
    with pytest.raises(Killed):
        hf.ensemble.predict(net, x, theta, chunk=5, progress=stop_at(5), partial=path)
    for changed, words in (
        ({"members": theta[:9]}, "members 23 there, 9 here"),
        ({"members": theta + 1}, "first weights"),
        ({"reduce": "votes"}, "reduce"),
        ({"x": x + 1}, "of other inputs"),
    ):
        with pytest.raises(ValueError, match=words):
            hf.ensemble.predict(**({"net": net, "x": x, "members": theta, "partial": path} | changed))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read; delete it"):
        hf.ensemble.predict(net, x, theta, partial=path)
