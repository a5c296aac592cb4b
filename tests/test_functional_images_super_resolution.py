"""Super-resolution: the model against plain loops, patches against the pictures they come from, the commands."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hyperfast import cli
from hyperfast.data.bicubic import resize_bicubic
from hyperfast.data.image_files import Picture
from hyperfast.data.missing import fill_missing
from hyperfast.experiments.functional_images.super_resolution.config import NAME, PRESETS, Config, Evaluation
from hyperfast.experiments.functional_images.super_resolution.metrics import psnr
from hyperfast.experiments.functional_images.super_resolution.patches import MARGIN, Patches, pair_of
from hyperfast.experiments.functional_images.super_resolution.train import load, train
from hyperfast.experiments.functional_images.super_resolution.upscale import upscale_picture
from hyperfast.models import FunctionalImage, functional_image
from hyperfast.models.branched_hypernetwork import layers_of

CPU = torch.device("cpu")
TINY = Config(
    train=("embedded",), predicts="residual", norm="none", width=4, branch_width=8, patch=4, points=12, batch=3, steps=6,
    held_out=0, validate_every=3, log_every=1, checkpoint_every=2,
    evaluation=Evaluation(sets=("tiny",), scales=(2, 2.5), drawn=1),
)  # fmt: skip


def model_of(seed=0, **options):
    torch.manual_seed(seed)
    return FunctionalImage(3, **({"patch": 4, "width": 4, "branch_width": 8} | options)).eval()


def residual_of(**options):
    """A model whose residuals are far from 0, where they start."""
    model = model_of(predicts="residual", **options)
    torch.nn.init.normal_(model.hypernetwork.details.weight)
    return model


def smooth(rows, cols, seed=0):
    """A picture [3,rows,cols] in [0,1] with more than noise in it."""
    few = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return resize_bicubic(few, (rows, cols)).clamp(0, 1)


# ---- the model --------------------------------------------------------------------------------------


def by_loops(model, image, scale):
    """upscale's picture, before what the bicubic one adds and before clipping: pixel by pixel and patch by patch."""
    size, half = model.patch, model.patch // 2
    rows, cols = image.shape[1:]
    height, width = round(rows * scale[0]), round(cols * scale[1])
    alpha = torch.tensor([math.sqrt(scale[0] * scale[1])])
    total, weights = torch.zeros(3, height, width), torch.zeros(height, width)
    mirror = lambda i, n: min(i % (2 * n), 2 * n - 1 - i % (2 * n))
    for top in range(-half, rows, half):
        for left in range(-half, cols, half):
            ys, xs = (
                [mirror(i, n) for i in range(start - model.context, start + size + model.context)]
                for start, n in ((top, rows), (left, cols))
            )
            theta = model.generate(image[:, ys][:, :, xs].unsqueeze(0))
            for i in range(height):
                for j in range(width):
                    u, v = (
                        2 * ((k + 0.5) * n / m - start) / size - 1
                        for k, n, m, start in ((i, rows, height, top), (j, cols, width, left))
                    )
                    if -1 <= u < 1 and -1 <= v < 1:
                        w = (0.5 * (1 + math.cos(math.pi * u)) + 1e-3) * (0.5 * (1 + math.cos(math.pi * v)) + 1e-3)
                        point = torch.cat([torch.tensor([u, v]), alpha]).view(1, 1, 3)
                        total[:, i, j] += w * model.net(point, theta)[0, 0]
                        weights[i, j] += w
    return total / weights


@pytest.mark.parametrize(("scale", "context"), [((2, 2), 0), ((1.7, 2.5), 1), ((0.6, 1), 2)])
@torch.no_grad()
def test_upscale_is_the_weighted_mean_of_the_patches(scale, context):
    image = smooth(5, 7)
    model = residual_of(context=context)
    plain = by_loops(model, image, scale)
    bicubic = resize_bicubic(image, plain.shape[1:])
    assert plain.abs().max() > 0.01
    assert bicubic.std() > 0.05
    torch.testing.assert_close(model.upscale(image, scale), (plain + bicubic).clamp(0, 1), rtol=1e-4, atol=1e-5)
    picture = model_of(predicts="picture", context=context)
    torch.testing.assert_close(picture.upscale(image, scale), by_loops(picture, image, scale), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_residual_follows_contrast_and_not_brightness(monkeypatch):
    monkeypatch.setattr(functional_image, "SMALLEST_DETAIL", 1e-6)
    model, patches = residual_of(context=2), torch.rand(5, 3, 8, 8)
    points, scale, none = 2 * torch.rand(5, 7, 2) - 1, torch.tensor([2.0, 3, 4, 2.5, 1]), torch.zeros(5, 7, 3)
    plain = model(patches, points, scale, none)
    assert plain.abs().max() > 0.01
    torch.testing.assert_close(model(0.3 * patches + 0.5, points, scale, none), 0.3 * plain, rtol=1e-3, atol=1e-5)
    flat = torch.full_like(patches, 0.4)
    assert model(flat, points, scale, none).abs().max() < 1e-4


def test_the_residual_starts_small_and_with_many_periods():
    torch.manual_seed(2)
    model = FunctionalImage(3, 8, "residual", context=4)
    patches = torch.rand(16, 3, 16, 16)
    points, scale = 2 * torch.rand(16, 50, 2) - 1, torch.full((16,), 2.0)
    assert model(patches, points, scale, torch.zeros(16, 50, 3)).square().mean().sqrt() < 0.05  # pixels: 0.29
    weights = model.net.unflatten(model.generate(patches))
    first, *hidden, _ = (w for name, w in weights.items() if name.endswith("weight"))
    expected = torch.tensor([2 * math.pi, 2 * math.pi, 3**-0.5]) / 3**0.5
    torch.testing.assert_close(first.flatten(0, 1).std(0), expected, rtol=0.2, atol=0)
    for weight in hidden:  # of inputs of mean square 1/2: a mean square of 1
        torch.testing.assert_close(weight.square().mean() * weight.shape[2] / 2, torch.tensor(1.0), rtol=0.1, atol=0)


def test_every_pixel_reaches_the_last_layer():
    """By details alone: branches give nothing here."""
    model = model_of(predicts="residual", context=1)
    for linear in model.hypernetwork.weights:
        torch.nn.init.zeros_(linear.weight)
    patches = torch.rand(1, 3, 6, 6, requires_grad=True)
    theta, last = model.generate(patches), layers_of(model.net)[-1]
    theta[:, last].sum().backward()
    assert (patches.grad != 0).all()
    assert torch.equal(theta[:, : last.start], model.generate(patches.detach().flip(2))[:, : last.start])


@pytest.mark.parametrize("norm", ["none", "per_target", "shared"])
def test_tiles_do_not_change_the_picture(norm, monkeypatch):
    model, image = model_of(norm=norm), smooth(23, 9)
    whole, seen = model.upscale(image, 2.3), []
    monkeypatch.setattr(functional_image, "_TILE_BYTES", 1)
    tiled = model.upscale(image, 2.3, progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-5)
    assert len(seen) == 12 * 5  # of half a patch each
    assert seen[-1] == (53 * 21, 53 * 21)
    assert not model.training


def test_a_pixel_and_wrong_pictures():
    model = model_of()
    assert model.upscale(torch.rand(3, 1, 1), 4).shape == (3, 4, 4)
    assert model.upscale(torch.rand(3, 2, 3), 0.1).shape == (3, 1, 1)
    for image, words in ((torch.rand(1, 4, 4), r"must be \[3,h,w\]"), (torch.rand(3, 0, 4), "at least one pixel")):
        with pytest.raises(ValueError, match=words):
            model.upscale(image, 2)
    with pytest.raises(ValueError, match="scale must be positive"):
        model.upscale(torch.rand(3, 4, 4), -1.0)
    with pytest.raises(ValueError, match="missing=True"):
        model.upscale(torch.rand(3, 4, 4), 1, torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="patch must be a positive even number"):
        FunctionalImage(patch=5)
    with pytest.raises(ValueError, match="context must not be negative"):
        FunctionalImage(context=-1)
    with pytest.raises(ValueError, match="base must be the bicubic picture"):
        model_of(predicts="residual")(torch.rand(2, 3, 4, 4), torch.zeros(2, 1, 2), torch.ones(2))


@pytest.mark.parametrize("make", [model_of, residual_of])
def test_missing_pixels_are_not_seen(make):
    model, image = make(missing=True), smooth(6, 6)
    known = (torch.rand(1, 6, 6) < 0.7).float()
    other = torch.where(known > 0, image, torch.rand(3, 6, 6))
    assert torch.equal(model.upscale(image, 2, known), model.upscale(other, 2, known))
    assert not torch.equal(model.upscale(image, 2, known), model.upscale(image, 2))
    same = model.upscale(image, 1, known)  # known ones stay
    assert torch.equal(same[:, known[0] > 0], image[:, known[0] > 0])
    assert (same != image)[:, known[0] == 0].any()


def test_a_residual_over_holes_is_added_to_the_filled_picture():
    """T is 0 at the start."""
    model, image = model_of(predicts="residual", missing=True), smooth(9, 7)
    torch.nn.init.zeros_(model.hypernetwork.details.weight)
    torch.nn.init.zeros_(model.hypernetwork.weights[-1].weight)
    known = (torch.rand(1, 9, 7) < 0.7).float()
    filled = fill_missing(image, known)
    torch.testing.assert_close(model.upscale(image, 1, known), filled.clamp(0, 1), rtol=0, atol=1e-6)
    expected = resize_bicubic(filled, (18, 14)).clamp(0, 1)
    torch.testing.assert_close(model.upscale(image, 2, known), expected, rtol=0, atol=1e-6)


def test_sizes_of_the_paper():
    assert FunctionalImage().net.num_weights == 35_523


# ---- patches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [0, 3])
def test_patches_are_of_their_picture(context):
    """A picture of low frequencies: at the drawn points bicubic is close to the truth, and equal to the resized one."""
    picture = (smooth(60, 75) * 255).round().to(torch.uint8)
    config = replace(TINY, batch=8, points=200, scales=(2, 3), patch=8, context=context)
    patches = Patches(config, [picture])
    batch = patches.draw(torch.Generator().manual_seed(0))
    assert batch.patches.shape == (8, 3, 8 + 2 * context, 8 + 2 * context)
    assert batch.points.abs().max() < 1
    assert set(batch.scale.tolist()) == {2.0, 3.0}
    assert (batch.base - batch.colours).abs().mean() < 0.02
    # By its colours, a pixel of the patch is found where its point says it is.
    nearest = ((batch.points + 1) / 2 * 8).long() + context
    inside = torch.stack([p[:, at[:, 0], at[:, 1]].T for p, at in zip(batch.patches, nearest, strict=True)])
    assert (inside - batch.colours).abs().mean() < 0.04
    shuffled = inside[:, torch.randperm(200)]
    assert (shuffled - batch.colours).abs().mean() > 2 * (inside - batch.colours).abs().mean()
    low = pair_of("", picture, 2).low
    assert (patches.low[0][0][:, MARGIN:-MARGIN, MARGIN:-MARGIN].float() / 255 - low).abs().max() < 1e-6
    with pytest.raises(ValueError, match="no picture has a patch of 40 pixels at a scale of 2"):
        Patches(replace(config, patch=40 - 2 * context), [picture])


def test_missing_shares_of_patches():
    picture = (smooth(40, 40) * 255).to(torch.uint8)
    patches = Patches(replace(TINY, missing=0.5, batch=40, context=2, scales=(1, 2)), [picture])
    batch = patches.draw(torch.Generator().manual_seed(1))
    known = batch.patches[:, 3]
    assert set(known.unique().tolist()) == {0.0, 1.0}
    assert 0.6 < known.mean() < 0.95
    assert (batch.patches[:, :3] * (1 - known.unsqueeze(1))).abs().max() == 0
    # At scale 1, points are the missing pixels, where there are any, and the base is what the filled patch has there.
    plain, at = batch.scale == 1, ((batch.points + 1) / 2 * 4).long() + 2
    every = torch.arange(40).unsqueeze(1)
    here = known[every, at[..., 0], at[..., 1]] > 0
    whole = known[:, 2:6, 2:6].amin((1, 2)) > 0
    assert torch.equal(here[plain], whole[plain].unsqueeze(1).expand(-1, 12))
    assert 0 < whole[plain].sum() < plain.sum()
    assert here[~plain].any(1).sum() > (whole & ~plain).sum()
    filled = fill_missing(batch.patches[:, :3], batch.patches[:, 3:])
    assert (batch.base - filled[every, :, at[..., 0], at[..., 1]])[plain].abs().mean() < 0.02
    assert (batch.base - batch.colours)[plain & whole].abs().max() < 1e-6


# ---- training and the commands ----------------------------------------------------------------------


def test_it_learns_and_resumes_bitwise(tmp_path):
    picture = (smooth(48, 48) * 255).round().to(torch.uint8)
    picture[:, ::6] = 0  # lines, which bicubic blurs
    config = replace(
        TINY, steps=200, points=24, batch=16, width=8, learning_rate=3e-3, warmup=10, clip=0.05, scales=(2,),
        validate_every=200, held_out=1,
    )  # fmt: skip
    pictures = [picture, picture]
    assert train(config, pictures, tmp_path / "whole", CPU) == 200

    def stop(step):
        if step == 101:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, pictures, tmp_path / "parts", CPU, after_step=stop)
    assert train(config, pictures, tmp_path / "parts", CPU, resume=True) == 200
    whole, parts = (load(tmp_path / name / "checkpoint.safetensors", CPU)[0] for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    pair = pair_of("", picture, 2)
    bicubic = resize_bicubic(pair.low, pair.high.shape[1:])
    assert psnr(whole.upscale(pair.low, 2), pair.high, 2) > psnr(bicubic, pair.high, 2) + 1


def test_the_commands_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", TINY)
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "tiny").mkdir(parents=True)
    for i in range(2):
        pixels = (smooth(40, 50, i) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(data / "tiny" / f"{i}.png")
    root = ["--data-root", str(data)]
    assert cli.main(["train", NAME, "--preset", "small", "--config.train", "tiny", "--out", str(run), *root]) == 0
    file = str(run / "checkpoint.safetensors")
    assert cli.main(["evaluate", NAME, "--checkpoint", file, *root]) == 0
    table = json.loads((run / "evaluation.json").read_text())["table"]
    assert [(row["scale"], row["trained"], row["pictures"]) for row in table] == [(2, True, 2), (2.5, False, 2)]
    assert all(row["psnr"] > 5 and row["bicubic_psnr"] > 20 for row in table)
    for name in ("pictures", "stretched", "training"):
        assert (run / f"{name}.png").read_bytes()[:4] == b"\x89PNG"

    source, target = tmp_path / "grey.png", tmp_path / "large.png"
    Image.fromarray(np.full((9, 7), 40_000, np.uint16)).save(source)
    assert cli.main(["upscale", str(source), str(target), "--scale", "2.5", "1", "--checkpoint", file]) == 0
    found = Image.open(target)
    assert found.size == (7, 22)
    assert np.asarray(found).dtype in (np.uint16, np.int32)
    rgba = upscale_picture(load(run / "checkpoint.safetensors", CPU)[0], Picture(torch.rand(3, 5, 5), torch.rand(1, 5, 5)), (2, 2), CPU)  # fmt: skip
    assert rgba.alpha.shape == (1, 10, 10)


def test_filling_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", replace(TINY, missing=0.5, context=2, scales=(1, 2), steps=1))
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "tiny").mkdir(parents=True)
    pixels = (smooth(40, 50) * 255).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(data / "tiny" / "0.png")
    root = ["--data-root", str(data)]
    assert cli.main(["train", NAME, "--preset", "small", "--config.train", "tiny", "--out", str(run), *root]) == 0
    assert cli.main(["evaluate", NAME, "--checkpoint", str(run / "checkpoint.safetensors"), *root]) == 0
    rows = {row["missing"]: row for row in json.loads((run / "evaluation.json").read_text())["filled"]}
    assert rows["pixels"]["share"] == pytest.approx(0.3, abs=0.03)
    # Rows 12 to 17 and 30 to 35, and columns like them, of 40 x 50 pixels.
    assert rows["squares"]["share"] == pytest.approx(12 * (12 + 2) / 2_000)
    known = torch.ones(1, 40, 50)
    for y, x in itertools.product((12, 30), (12, 30, 48)):
        known[:, y : y + 6, x : x + 6] = 0
    error = (fill_missing(pixels / 255, known) - pixels / 255)[:, known[0] == 0].square().mean()
    assert rows["squares"]["plain_psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    # One step moves the residual from 0 by little.
    assert all(abs(row["psnr"] - row["plain_psnr"]) < 1 for row in rows.values())
    assert (run / "filled.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "missing.png", "o.png", "--scale", "2", "--checkpoint", "missing"], "missing"),
        (["train", NAME, "--config.train", "nowhere", "--data-root", "."], "neither a folder nowhere/ nor nowhere.zip"),
        (["train", NAME, "--preset", "small", "--config.held-out", "1"], "held_out must be less than the 1 pictures"),
    ],
)
def test_user_errors(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERFAST_DATA", raising=False)
    assert cli.main(arguments) != 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"missing": 1.0}, "config.missing must be from 0 to below 1"),
        ({"context": -1}, "config.context must be at least 0"),
        ({"batch": 1}, "config.batch must be at least 2"),
        ({"scales": (2, 0)}, "config.scales must be at least 1"),
    ],
)
def test_wrong_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_wrong_evaluation():
    with pytest.raises(ValueError, match="missing must lie between 0 and 1"):
        Evaluation(missing=0.0)
