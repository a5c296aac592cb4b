"""Pictures from files, bicubic resizing, the pairs of super-resolution and how they are compared."""

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from made_up import real_data_root
from PIL import Image

from hyperfast.data.bicubic import bicubic_at, resize_bicubic
from hyperfast.data.image_files import Picture, PictureFiles, read_picture, write_picture
from hyperfast.data.super_resolution import find_set, load_pairs
from hyperfast.experiments.functional_images.super_resolution.metrics import luma, psnr, ssim

# ---- bicubic ----------------------------------------------------------------------------------------


def keys(t):
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def weights(old, new):
    """[new,old]: output i is the mean of the inputs around (i + 1/2) old / new, mirrored at the edges."""
    matrix, stretch = np.zeros((new, old)), max(1.0, old / new)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        near = range(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1)
        each = np.array([keys((j - centre) / stretch) for j in near])
        for j, w in zip(near, each / each.sum(), strict=True):
            j %= 2 * old
            matrix[i, min(j, 2 * old - 1 - j)] += w
    return torch.from_numpy(matrix)


@pytest.mark.parametrize(
    ("old", "new"), [((12, 9), (6, 3)), ((7, 10), (21, 25)), ((10, 13), (4, 5)), ((1, 2), (3, 1)), ((30, 4), (7, 9))]
)
def test_bicubic_is_the_mean_that_keys_kernel_defines(old, new):
    image = torch.rand(3, *old, dtype=torch.float64)
    expected = torch.einsum("ih,chw,jw->cij", weights(old[0], new[0]), image, weights(old[1], new[1]))
    torch.testing.assert_close(resize_bicubic(image, new), expected, rtol=0, atol=1e-12)
    batch = torch.stack([image, 1 - image]).unsqueeze(0)
    found = resize_bicubic(batch, new)
    assert found.shape == (1, 2, 3, *new)
    torch.testing.assert_close(found[0, 1], 1 - expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [((4, 6), (10, 15)), ((1, 2), (3, 4)), ((5, 3), (5, 11))])
def test_bicubic_at_places_is_the_larger_picture(old, new):
    images = torch.rand(2, 3, *old, dtype=torch.float64)
    rows, cols = ((torch.arange(n, dtype=torch.float64) + 0.5) * o / n for o, n in zip(old, new, strict=True))
    found = bicubic_at(images, torch.cartesian_prod(rows, cols).expand(2, -1, -1))
    expected = resize_bicubic(images, new)
    torch.testing.assert_close(found.transpose(1, 2).unflatten(2, new), expected, rtol=0, atol=1e-12)


def test_bicubic_refuses_nothing():
    with pytest.raises(ValueError, match="sides of at least one pixel"):
        resize_bicubic(torch.rand(1, 4, 4), (0, 3))


# ---- files ------------------------------------------------------------------------------------------


def saved(path, values, mode=None):
    image = Image.fromarray(values) if mode is None else Image.fromarray(values).convert(mode)
    image.save(path)
    return path


def random_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pictures_come_back_as_they_were(tmp_path):
    rgb, grey, rgba = random_bytes(5, 7, 3), random_bytes(1, 1), random_bytes(4, 3, 4)
    deep = np.random.default_rng(1).integers(0, 65536, (6, 5)).astype(np.uint16)
    for name, values in (("rgb", rgb), ("grey", grey), ("rgba", rgba), ("deep", deep)):
        picture = read_picture(saved(tmp_path / f"{name}.png", values))
        assert picture.pixels.dtype == torch.float32
        channels = 3 if name in ("rgb", "rgba") else 1
        assert picture.pixels.shape == (channels, *values.shape[:2])
        assert (picture.alpha is not None) == (name == "rgba")
        assert picture.bits == (16 if name == "deep" else 8)
        write_picture(tmp_path / "again.png", picture)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), values)
    np.testing.assert_allclose(read_picture(tmp_path / "rgb.png").pixels[1] * 255, rgb[..., 1], rtol=1e-6)
    write_picture(tmp_path / "clipped.png", Picture(torch.tensor([[[-0.5, 0.5, 1.5]]])))
    assert np.asarray(Image.open(tmp_path / "clipped.png")).tolist() == [[0, 128, 255]]


def test_other_modes(tmp_path):
    rgb = random_bytes(6, 6, 3)
    for mode in ("P", "1", "CMYK"):
        suffix = "tiff" if mode == "CMYK" else "png"
        path = saved(tmp_path / f"{mode}.{suffix}", rgb, mode)
        channels = 1 if mode == "1" else 3
        expected = np.asarray(Image.open(path).convert("L" if mode == "1" else "RGB"))
        found = read_picture(path).pixels
        assert found.shape == (channels, 6, 6)
        np.testing.assert_allclose(found.permute(1, 2, 0).squeeze() * 255, expected, rtol=1e-6)
    turned = Image.fromarray(rgb[:2])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").pixels.shape == (3, 6, 2)


def test_what_is_no_picture_is_named(tmp_path):
    whole = saved(tmp_path / "a.png", random_bytes(40, 40, 3)).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no picture"):
        (tmp_path / "damaged.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.png cannot be read as a picture"):
            read_picture(tmp_path / "damaged.png")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating-point values"):
        read_picture(tmp_path / "float.tiff")
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(ValueError, match=r"cannot hold a picture of mode RGBA.*\.png can"):
        write_picture(tmp_path / "a.jpg", Picture(torch.rand(3, 2, 2), torch.rand(1, 2, 2)))
    with pytest.raises(ValueError, match=r"\.xyz cannot hold"):
        write_picture(tmp_path / "a.xyz", Picture(torch.rand(3, 2, 2)))


def archive(path, files):
    with zipfile.ZipFile(path, "w") as out:
        for name, values in files.items():
            stream = io.BytesIO()
            Image.fromarray(values).save(stream, "PNG")
            out.writestr(name, stream.getvalue())


def test_folders_and_archives(tmp_path):
    folder = tmp_path / "set"
    (folder / "in").mkdir(parents=True)
    saved(folder / "b.png", random_bytes(3, 4, 3))
    saved(folder / "in" / "a.png", random_bytes(2, 2))
    (folder / "notes.txt").write_text("not a picture")
    files = PictureFiles(folder)
    assert files.names == ["b.png", "in/a.png"]
    assert [picture.pixels.shape for picture in files] == [(3, 3, 4), (1, 2, 2)]
    assert [picture.pixels.shape for picture in files[1:]] == [(1, 2, 2)]
    archive(tmp_path / "set.zip", {"in/a.png": random_bytes(2, 2), "b.png": random_bytes(3, 4, 3)})
    assert PictureFiles(tmp_path / "set.zip").names == files.names
    assert torch.equal(PictureFiles(tmp_path / "set.zip", "in")[0].pixels, files[1].pixels)
    with pytest.raises(ValueError, match=r"set\.zip out has no pictures"):
        PictureFiles(tmp_path / "set.zip", "out")
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        PictureFiles(tmp_path / "bad.zip")
    with pytest.raises(FileNotFoundError, match="a folder or a zip archive of pictures was expected"):
        PictureFiles(tmp_path / "nothing")


# ---- pairs ------------------------------------------------------------------------------------------


def test_pairs_cover_the_same_extent(tmp_path):
    high = random_bytes(21, 27, 3)
    given = random_bytes(10, 13, 3)
    archive(tmp_path / "Tiny.zip", {"HR/x.png": high, "LR_x2/x.png": given, "HR/grey.png": high[..., 0]})
    two = {pair.name: pair for pair in load_pairs("tiny", 2, tmp_path)}
    np.testing.assert_allclose(two["x"].low.permute(1, 2, 0) * 255, given, rtol=1e-6)
    assert two["x"].high.shape == (3, 20, 26)
    np.testing.assert_allclose(two["x"].high.permute(1, 2, 0) * 255, high[:20, :26], rtol=1e-6)
    made = resize_bicubic(two["grey"].high, (10, 13)).clamp(0, 1)
    torch.testing.assert_close(two["grey"].low, made, rtol=0, atol=0.5 / 255 + 1e-6)
    odd = next(load_pairs("tiny", 2.5, tmp_path))
    assert odd.low.shape == (1, 8, 10)
    assert odd.high.shape == (1, 20, 25)
    with pytest.raises(ValueError, match="too small for a scale of 30"):
        list(load_pairs("tiny", 30, tmp_path))
    with pytest.raises(FileNotFoundError, match=r"neither a folder Set5/ nor Set5\.zip was found"):
        find_set("Set5", tmp_path)


# ---- comparing --------------------------------------------------------------------------------------


def test_psnr_and_ssim():
    expected = torch.rand(3, 40, 30)
    expected = (expected * 255).round() / 255
    assert psnr(expected, expected, 2) == math.inf
    assert ssim(expected, expected, 2) == pytest.approx(1)
    found = expected.clone()
    found[:, 2:-2, 2:-2] = ((found[:, 2:-2, 2:-2] * 255 + 10).clamp(0, 255)) / 255
    difference = (luma(found) - luma(expected))[2:-2, 2:-2]
    assert psnr(found, expected, 2) == pytest.approx(10 * math.log10(255**2 / difference.square().mean().item()))
    assert 0.5 < ssim(found, expected, 2) < 1
    with pytest.raises(ValueError, match="too small to compare"):
        ssim(found[:, :14], expected[:, :14], 2)
    white, black = torch.ones(3, 1, 1), torch.zeros(1, 1, 1)
    assert luma(white).item() == pytest.approx(235)
    assert luma(black).item() == 16


def test_bicubic_has_the_paper_s_psnr(tmp_path):
    root = real_data_root()
    if root is not None and (root / "super_resolution").is_dir():
        paper = {("Set5", 2): 33.64, ("Set5", 3): 30.41, ("Set5", 4): 28.42, ("Set14", 4): 26.08}
    else:
        archive(tmp_path / "made.zip", {"a.png": random_bytes(60, 48, 3)})
        root, paper = tmp_path, {("made", 2): None}
    for (name, scale), expected in paper.items():
        values = [
            psnr(resize_bicubic(pair.low, pair.high.shape[1:]), pair.high, scale)
            for pair in load_pairs(name, scale, root)
        ]
        if expected is None:
            assert 5 < values[0] < 25  # noise: most of it is above what low resolution holds
        else:
            assert sum(values) / len(values) == pytest.approx(expected, abs=0.06)
