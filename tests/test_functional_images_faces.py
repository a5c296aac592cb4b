"""Faces as functions: the model, paths between faces, distances to real ones, training and the commands."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from made_up import write_faces
from torch import nn

from hyperfast import cli
from hyperfast.data.drawn_faces import draw_faces
from hyperfast.data.faces import Faces
from hyperfast.experiments import checkpoint
from hyperfast.experiments.functional_images.faces import figures, paths
from hyperfast.experiments.functional_images.faces.config import NAME, PRESETS, Config, Evaluation
from hyperfast.experiments.functional_images.faces.model import centres, in_unit
from hyperfast.experiments.functional_images.faces.train import build, errors, load, reconstructed, train, train_step
from hyperfast.models.branched_hypernetwork import layers_of
from hyperfast.nn import TargetNet

CPU = torch.device("cpu")
TINY = Config(
    data="faces", side=8, crop=30, held_out=4, points=20, norm="none", width=4, branch_width=8, batch=4, steps=6,
    validate_every=3, log_every=1, checkpoint_every=2,
    evaluation=Evaluation(shown=2, enlarged=2, pairs=2, between=3, drawn=1),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """So little work takes longer when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(count=8, seed=0):
    return draw_faces(count, 8, seed)


def model_of(**options):
    """Initial weights; batch norms have seen faces, without which all pictures would have nearly the same network."""
    model = build(replace(TINY, **options), CPU)[0].requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model(in_unit(drawn(16), CPU))
    return model.eval()


# ---- the model --------------------------------------------------------------------------------------


def test_sizes_of_the_paper():
    assert build(replace(PRESETS["paper"], branch_width=8), CPU)[0].net.num_weights == 35_491


@pytest.mark.parametrize("norm", ["none", "shared"])
def test_pixels_are_those_of_the_grid(norm):
    """What training compares at drawn pixels is what is drawn there."""
    model = model_of(norm=norm)
    pictures = in_unit(drawn(3), CPU)
    whole = model.render(model.hypernetwork(pictures))
    pixels = torch.randint(64, (3, 30))
    at = whole.flatten(2).gather(2, pixels.unsqueeze(1).expand(-1, 3, -1)).transpose(1, 2)
    torch.testing.assert_close(model(pictures, pixels), at)
    torch.testing.assert_close(model(pictures), whole.flatten(2).transpose(1, 2))
    torch.testing.assert_close(centres(torch.tensor([0, 15]), 8), torch.tensor([[-0.875, -0.875], [-0.625, 0.875]]))


@pytest.mark.parametrize("norm", ["none", "per_target", "shared"])
def test_enlarged_is_the_same_function(norm):
    """Of three times as many pixels, every third has the place of one of the few."""
    model = model_of(norm=norm)
    theta = model.hypernetwork(in_unit(drawn(2), CPU))
    torch.testing.assert_close(model.render(theta, 3)[..., 1::3, 1::3], model.render(theta), rtol=1e-4, atol=1e-5)


# ---- paths ------------------------------------------------------------------------------------------


def test_paths_end_at_the_pictures():
    model, pictures = model_of(), drawn(6)
    found = paths.between(model, pictures, 3)
    own = reconstructed(model, pictures)
    for end, picks in ((0, [0, 2, 4]), (-1, [1, 3, 5])):
        torch.testing.assert_close(found.weights[:, end], own[picks])
        torch.testing.assert_close(found.reconstructions[:, end], own[picks])
        torch.testing.assert_close(found.pixels[:, end], in_unit(pictures[picks], CPU))
    torch.testing.assert_close(found.pixels[:, 1], in_unit(pictures, CPU).unflatten(0, (3, 2)).mean(1))
    theta = model.hypernetwork(in_unit(pictures, CPU))
    torch.testing.assert_close(found.weights[1, 1], model.render(theta[2:4].mean(0, keepdim=True))[0])
    assert (own[0] - own[1]).abs().max() > 0.01  # another picture, another function
    assert (found.weights[:, 1] - found.reconstructions[:, 1]).abs().max() > 1e-5  # another path


def test_layers_change_one_after_the_other():
    model, pictures = model_of(), drawn(2)
    found = paths.by_layers(model, pictures, 3)
    assert found.shape == (5, 3, 3, 8, 8)
    own = reconstructed(model, pictures)
    torch.testing.assert_close(found[:, 0], own[:1].expand(5, -1, -1, -1))
    torch.testing.assert_close(found[4], paths.between(model, pictures, 3).weights[0])
    weights = [model.net.unflatten(theta.unsqueeze(0)) for theta in model.hypernetwork(in_unit(pictures, CPU))]
    names = list(weights[0])  # weight and bias of each layer
    mixed = {name: weights[names.index(name) < 4][name] for name in names}  # the first two layers are the second's
    torch.testing.assert_close(found[1, 2], model.render(model.net.flatten(mixed))[0])


def test_layers_of_a_net():
    net = TargetNet(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)))
    assert layers_of(net) == [slice(0, 15), slice(15, 35), slice(35, 50)]


def test_nearest_is_the_smallest_difference(monkeypatch):
    real, pictures = draw_faces(37, 8, 3), torch.rand(5, 3, 8, 8)
    pictures[2] = real[30].float() / 255
    each = (pictures.unsqueeze(1) - real.float() / 255).square().flatten(2).mean(2).sqrt()  # [5,37]
    for at_once in (4_096, 10):
        monkeypatch.setattr(paths, "_REAL_AT_ONCE", at_once)
        distance, index = paths.nearest(pictures, real)
        assert torch.equal(index, each.argmin(1))
        torch.testing.assert_close(distance, each.min(1).values)
    assert distance[2] == 0
    assert index[2] == 30


def test_summary_of_known_paths():
    """Distances 0 at the ends and d in the middle; a grey middle has no detail."""
    real = drawn(4)
    pictures = in_unit(real, CPU)
    ends = torch.stack([pictures[:2], pictures[2:]], 1)  # [2,2,3,8,8]
    moved = [(ends[:, 0] + d).unsqueeze(1) for d in (0.1, 0.02)]
    grey = torch.full_like(moved[0], 0.5)
    parts = [torch.cat([ends[:, :1], middle, ends[:, 1:]], 1) for middle in (*moved, grey)]
    measured = paths.measure(paths.Paths(*parts), real, CPU, lambda done: None)
    weights, pixels, grey_row = paths.summary(measured)
    assert weights["distance_ends"] == pixels["distance_ends"] == 0
    assert weights["distance_middle"] == pytest.approx(0.1, rel=1e-4)
    assert pixels["distance_path"] == pytest.approx(0.02, rel=1e-4)
    assert pixels["beside_weights"] == pytest.approx(-0.08, rel=1e-3)
    assert pixels["standard_error"] == pytest.approx(0, abs=1e-5)
    assert (weights["nearer"], pixels["nearer"]) == (0, 1)
    assert grey_row["detail_middle"] == 0
    table = paths.rows(measured, 3)
    assert [(row["pair"], row["t"]) for row in table] == [(i, t) for i in range(2) for t in (0, 0.5, 1)]
    assert table[4]["distance_weights"] == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ValueError, match="a path needs two test pictures; there are 1"):
        paths.pairs_of(real[:1], Evaluation())
    assert len(paths.pairs_of(drawn(5), Evaluation())) == 4


# ---- training ---------------------------------------------------------------------------------------


def faces(count=16):
    return Faces(drawn(count), drawn(4, 1), drawn(4, 2), "drawn")


def test_it_learns_which_face_it_sees(tmp_path):
    config = replace(TINY, norm="per_target", branch_width=32, batch=16, steps=100, learning_rate=1e-2,
                     validate_every=100)  # fmt: skip
    train(config, faces(), tmp_path, CPU)
    model, _, step = load(tmp_path / "checkpoint.safetensors", CPU)
    assert step == 100
    found = reconstructed(model, drawn(16))
    own, others = errors(found, drawn(16)).mean(), errors(found, drawn(16).roll(1, 0)).mean()
    spread = drawn(16).float().div(255).var(0, correction=0).mean()  # the error of the mean picture
    assert own < 0.5 * spread
    assert others > spread
    with (tmp_path / "validation.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["100"]


def test_21_resumed_training_is_the_same(tmp_path):
    config = replace(TINY, points=None, norm="shared")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train(config, faces(), whole, CPU)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, faces(), pieces, CPU, after_step=stop)
    assert train(config, faces(), pieces, CPU, resume=True) == 6
    for name in ("checkpoint.safetensors", "best.safetensors"):
        states = [checkpoint.load(folder / name)[0] for folder in (whole, pieces)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(ValueError, match="side"):
        train(replace(config, side=9), faces(), pieces, CPU, resume=True)


def test_half_of_the_pictures_are_mirrored():
    """Left half white, right half black: seen and asked for in both ways, in every batch."""
    halves = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    halves[..., :4] = 255
    model, optimizer = build(TINY, CPU)
    seen = []
    model.hypernetwork.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 0, 0].clone()))
    for mirrored in (False, True):
        train_step(replace(TINY, mirrored=mirrored), model, optimizer, halves, 0)
    assert seen[0].eq(1).all()
    assert set(seen[1].tolist()) == {0.0, 1.0}


def test_the_commands_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", TINY)
    write_faces(tmp_path / "data" / "faces", 14)
    run, root = tmp_path / "run", ["--data-root", str(tmp_path / "data"), "--device", "cpu"]
    assert cli.main(["train", NAME, "--preset", "small", "--out", str(run), *root]) == 0
    assert "faces: 14 pictures, 4 and 4 held out at random: 6 to train with" in capsys.readouterr().out
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert cli.main(["evaluate", NAME, "--checkpoint", str(run / name), *root]) == 0
    about = json.loads((run / "evaluation.json").read_text())
    assert (about["pictures"], about["pairs"], about["training_pictures"]) == (4, 2, 6)
    assert 3 < about["psnr"] < 30
    assert [row["path"] for row in about["paths"]] == list(paths.KINDS)
    assert all(row["distance_middle"] > 0 for row in about["paths"])
    assert about["paths"][0]["distance_ends"] == pytest.approx(about["paths"][2]["distance_ends"], rel=1e-4)
    with (run / "distances.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    for name in figures.FIGURES:
        assert (run / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 1}, "config.batch must be at least 2"),
        ({"side": 0}, "config.side must be at least 1"),
        ({"held_out": 1}, "config.held_out must be at least 2"),
        ({"learning_rate": 0.0}, "config.learning_rate must be positive; got 0.0"),
    ],
)
def test_wrong_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_user_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", NAME, "--config.data", "nowhere", "--data-root", "."]) != 0
    assert "neither a folder nowhere/ nor nowhere.zip" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"config\.evaluation\.between must be at least 3"):
        Evaluation(between=2)
    with pytest.raises(ValueError, match="batch must be at most the 3"):
        train(TINY, faces(3), tmp_path, CPU)
