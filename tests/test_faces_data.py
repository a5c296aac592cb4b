"""Faces from folders and archives: how they are framed, parted, and what is said where they are damaged."""

import zipfile

import numpy as np
import pytest
import torch
from made_up import real_data_root, write_faces
from PIL import Image

from hyperfast.data.bicubic import resize_bicubic
from hyperfast.data.drawn_faces import draw_faces
from hyperfast.data.faces import framed, load_faces
from hyperfast.data.image_files import Picture, read_picture


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def as_set(*parts):
    return sorted(face.numpy().tobytes() for part in parts for face in part)


# ---- one picture ------------------------------------------------------------------------------------


def test_framed_is_the_centre_resized():
    pixels = torch.rand(3, 30, 21)
    whole = (pixels[:, 10:20, 5:15] * 255).round().to(torch.uint8)  # rows 10 to 19 of 30, columns 5 to 14 of 21
    assert torch.equal(framed(Picture(pixels), 10, 10), whole)
    half = (resize_bicubic(pixels[:, 10:20, 5:15], (5, 5)).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(framed(Picture(pixels), 5, 10), half)
    assert torch.equal(framed(Picture(pixels), 7, 100), framed(Picture(pixels[:, 4:25]), 7, 21))  # the largest square


def test_a_fine_pattern_becomes_grey():
    """Without antialiasing half of the stripes would be dropped, and black or white stay."""
    stripes = (torch.arange(128) % 2).float().expand(3, 128, 128)
    found = framed(Picture(stripes), 32, 128)[..., 4:-4].int()  # at the edges the mirrored stripe is twice as wide
    assert (found - 128).abs().max() <= 1


def test_22_pictures_of_every_kind(tmp_path):
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (9, 8, 3), dtype=np.uint8)
    alpha = random.integers(0, 256, (8, 8), dtype=np.uint8)
    deep = random.integers(0, 65536, (8, 8)).astype(np.uint16)
    kinds = {
        "rgb": (rgb, rgb[:8]),
        "grey": (rgb[:8, :, 0], rgb[:8, :, :1].repeat(3, 2)),
        "rgba": (np.dstack([rgb[:8], alpha]), 255 - (255.0 - rgb[:8]) * alpha[..., None] / 255),  # over white
        "deep": (deep, (deep / 257)[..., None].repeat(3, 2)),
        "dot": (rgb[:1, :1], np.broadcast_to(rgb[0, 0], (8, 8, 3))),
    }
    for name, (values, expected) in kinds.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        found = framed(read_picture(tmp_path / f"{name}.png"), 8, 8)
        assert found.dtype == torch.uint8
        np.testing.assert_allclose(found.permute(1, 2, 0).double().numpy(), expected, atol=0.51)


# ---- parts ------------------------------------------------------------------------------------------


def test_folder_archive_and_archive_in_a_folder_are_the_same(tmp_path):
    faces = write_faces(tmp_path / "a" / "set")
    zipped(tmp_path / "a" / "set", tmp_path / "a" / "Other.zip")
    (tmp_path / "a" / "third").mkdir()
    zipped(tmp_path / "a" / "set", tmp_path / "a" / "third" / "pictures.zip")
    seen = []
    read = load_faces("set", tmp_path / "a", 3, 16, 30, progress=lambda *done: seen.append(done))
    assert seen[-1] == (12, 12)
    assert [len(part) for part in (read.train, read.validation, read.test)] == [6, 3, 3]
    expected = [framed(Picture(torch.from_numpy(f.copy()).permute(2, 0, 1).float() / 255), 16, 30) for f in faces]
    assert as_set(read.train, read.validation, read.test) == as_set(expected)
    for name in ("other", "third"):
        again = load_faces(name, tmp_path / "a", 3, 16, 30)
        assert torch.equal(again.train, read.train)
        assert torch.equal(again.test, read.test)
    fewer = load_faces("set", tmp_path / "a", 3, 16, 30, pictures=2)
    assert torch.equal(fewer.train, read.train[:2])
    assert torch.equal(fewer.test, read.test)


@pytest.mark.parametrize("where", ["celeba/{}", "celeba/Eval/{}", "{}"])
def test_celebas_own_parts(tmp_path, where):
    name = "celeba"
    write_faces(tmp_path / "celeba" / "Img" / "img_align_celeba")
    Image.new("RGB", (9, 9)).save(tmp_path / "celeba" / "Img" / "sample.png")  # not one of the aligned ones
    if where == "{}":
        zipped(tmp_path / "celeba" / "Img", tmp_path / "img_align_celeba.zip")
        name = "img_align_celeba"
    parts = [2, 0, 1, 0, 0, 2, 1, 0, 0, 1, 2, 0]
    lines = [f"{number:06}.png {part}" for number, part in enumerate(parts, 1)]
    file = tmp_path / where.format("list_eval_partition.txt")
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    read = load_faces(name, tmp_path, 2, 16, 30)
    everything = draw_faces(12, 40, 1)[:, :, :, :36].float() / 255
    framed_ = torch.stack([framed(Picture(face), 16, 30) for face in everything])
    assert torch.equal(read.train, framed_[[1, 3, 4, 7, 8, 11]])
    assert torch.equal(read.validation, framed_[[2, 6]])  # the first two of three
    assert torch.equal(read.test, framed_[[0, 5]])
    csv = file.with_suffix(".csv")
    csv.write_text("image_id,partition\n" + "\n".join(line.replace(" ", ",") for line in lines))
    file.unlink()
    assert torch.equal(load_faces(name, tmp_path, 2, 16, 30).train, read.train)
    csv.write_text("image_id,partition\n000001.png,3\n")
    with pytest.raises(ValueError, match=r"csv, line 2: .* 0, 1 or 2 were expected; got '000001.png,3'"):
        load_faces(name, tmp_path, 2, 16, 30)
    csv.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"does not list .*000012\.png"):
        load_faces(name, tmp_path, 2, 16, 30)
    csv.write_text("\n".join(line[:-1] + "0" for line in lines))
    with pytest.raises(ValueError, match="none of the validation pictures"):
        load_faces(name, tmp_path, 2, 16, 30)


def test_a_person_is_in_one_part(tmp_path):
    """As LFW has them; the brightness tells the person."""
    for person in range(8):
        folder = tmp_path / "lfw" / f"P_{person}"
        folder.mkdir(parents=True)
        for number in range(1, 4):
            Image.new("L", (5, 5), 10 * person + number).save(folder / f"P_{person}_{number:04}.png")
    read = load_faces("lfw", tmp_path, 4, 4, 5)
    persons = [set((part[:, 0, 0, 0] // 10).tolist()) for part in (read.train, read.validation, read.test)]
    assert sum(map(len, persons)) == 8
    assert set.union(*persons) == set(range(8))
    assert [len(part) for part in (read.train, read.validation, read.test)] == [12, 6, 6]


def test_22_what_is_wrong_is_named(tmp_path):
    folder = tmp_path / "set"
    write_faces(folder)
    whole = (folder / "000005.png").read_bytes()
    (folder / "000005.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"000005\.png cannot be read as a picture"):
        load_faces("set", tmp_path, 3, 16, 30)
    (folder / "000005.png").write_bytes(whole)
    path = zipped(folder, tmp_path / "damaged.zip")
    content = bytearray(path.read_bytes())
    place = content.index(whole[40:80])
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.zip: 000005\.png cannot be read"):
        load_faces("damaged", tmp_path, 3, 16, 30)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"damaged\.zip is neither a folder nor a zip archive"):
        load_faces("damaged", tmp_path, 3, 16, 30)
    with pytest.raises(ValueError, match=r"set has 12 pictures of 12 persons; .* 6 each"):
        load_faces("set", tmp_path, 6, 16, 30)
    with pytest.raises(FileNotFoundError, match=r"neither a folder nowhere/ nor nowhere\.zip"):
        load_faces("nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no pictures; .* it has no archive"):
        load_faces("empty", tmp_path)


def test_drawn_faces():
    small, large = draw_faces(8, 16), draw_faces(8, 64)
    assert large.shape == (8, 3, 64, 64)
    assert large.dtype == torch.uint8
    blurred = resize_bicubic(large.float(), (16, 16))
    assert (blurred - small).abs().mean() < 6  # the same faces
    assert (blurred - small.flip(0)).abs().mean() > 30  # which differ
    read = load_faces("embedded", held_out=100, side=16, pictures=50)
    assert [len(part) for part in (read.train, read.validation, read.test)] == [50, 100, 100]
    with pytest.raises(ValueError, match=r"drawn faces has 1600 pictures .* 800 each"):
        load_faces("embedded", held_out=800, side=4)


def test_the_real_subset():
    root = real_data_root()
    if root is None or not (root / "lfw_subset2000").is_dir():
        return  # the layout, an archive in a folder, is tested above with made-up pictures
    read = load_faces("lfw_subset2000", root, 20, 8, pictures=10)
    assert read.title.startswith("lfw_subset2000: 2,000 pictures")
    assert read.train.shape == (10, 3, 8, 8)
    assert 60 < read.test.float().mean() < 180
