"""CIFAR-10 in each of its forms, images by name, augmentation; and what is said of damaged files (row 22)."""

import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from made_up import cifar_batch, colour_images, real_data_root, write_cifar_batches, write_cifar_images
from PIL import Image

from hyperfast.data import augmented, load_cifar10, load_cifar10_subset, load_pictures
from hyperfast.data.cifar import BATCHES, SUBSET, TAR, TEST_BATCH, TRAIN_BATCHES


def write_subset(folder, count=520, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = colour_images(count, 0)
    np.savez(folder / SUBSET, **{"images": images, "labels": labels} | changes)
    return images, labels


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(folder)}")


def same(part, images, labels):
    assert part.images.dtype == torch.uint8
    assert part.labels.dtype == torch.int64
    assert torch.equal(part.images, torch.from_numpy(images))
    assert torch.equal(part.labels, torch.from_numpy(labels).long())


# ---- forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cifar10", f"cifar10/{BATCHES}", ".", BATCHES])
def test_python_batches(place, tmp_path):
    _, parts = write_cifar_batches(tmp_path / place)
    data = load_cifar10(tmp_path)
    same(data.train, *(np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True)))
    same(data.test, *parts[5])
    assert data.title == "CIFAR-10"


def test_tar_of_python_batches(tmp_path):
    folder, parts = write_cifar_batches(tmp_path / "made" / BATCHES)
    (tmp_path / "data/cifar10").mkdir(parents=True)
    with tarfile.open(tmp_path / "data/cifar10" / TAR, "w:gz") as archive:
        archive.add(folder, BATCHES)
    same(load_cifar10(tmp_path / "data").test, *parts[5])
    assert len(load_cifar10(tmp_path / "data/cifar10").train) == 100


@pytest.mark.parametrize("prefix", [None, "", "CIFAR-10-images/"])
def test_folders_and_zips_of_images(prefix, tmp_path):
    """prefix None: folders; else a zip in which they lie under it."""
    made = tmp_path / ("cifar10" if prefix is None else "made")
    parts = write_cifar_images(made)
    (made / "test" / "notes.txt").write_text("not an image")
    if prefix is not None:
        (tmp_path / "cifar10").mkdir()
        zipped(made, tmp_path / "cifar10/cifar10_png.zip", prefix)
    data = load_cifar10(tmp_path)
    for part, expected in zip((data.train, data.test), parts, strict=True):
        same(part, *expected)
    assert data.title == "CIFAR-10"


def test_jpegs_are_called_so(tmp_path):
    images, labels = write_cifar_images(tmp_path / "cifar10", ".jpg")[0]
    data = load_cifar10(tmp_path)
    assert data.title == "CIFAR-10 (JPEG)"
    assert load_pictures("cifar10", tmp_path, 5).title == "CIFAR-10 (JPEG)"
    assert torch.equal(data.train.labels, torch.from_numpy(labels).long())
    difference = data.train.images.double() - torch.from_numpy(images).double()
    assert 1 < difference.square().mean().sqrt() < 40  # the same images, but for the loss


def test_subset(tmp_path):
    images, labels = write_subset(tmp_path / "cifar10")
    data = load_cifar10_subset(tmp_path)
    same(data.train, images[:20], labels[:20])
    same(data.test, images[20:], labels[20:])
    assert "first 520 training images" in data.title


def test_the_real_ones_or_their_stand_in(long_run, tmp_path):
    """Published facts where the data is there: of the subset, and in the long form of all images."""
    root = real_data_root()
    if root is None or not (root / "cifar10" / SUBSET).is_file():
        write_subset(tmp_path)
        assert len(load_cifar10_subset(tmp_path).train) == 20
        return
    data = load_cifar10_subset(root)
    assert (len(data.train), len(data.test)) == (3_500, 500)
    assert data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    counts = torch.bincount(torch.cat([data.train.labels, data.test.labels]))
    assert counts.tolist() == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    if long_run:
        whole = load_cifar10(root)
        assert whole.title == "CIFAR-10 (JPEG)"
        for part, count in ((whole.train, 5_000), (whole.test, 1_000)):
            assert torch.bincount(part.labels).tolist() == [count] * 10
        means = whole.train.images.float().mean((0, 2, 3)) / 255
        torch.testing.assert_close(means, torch.tensor([0.4913, 0.4821, 0.4465]), rtol=0, atol=1e-4)


def test_pictures_by_name(tmp_path):
    write_cifar_batches(tmp_path)
    one, other = load_pictures("cifar10", tmp_path, 30), load_pictures("cifar10", tmp_path, 30)
    assert [len(part) for part in (one.training, one.validation, one.test)] == [70, 30, 20]
    assert torch.equal(one.validation.images, other.validation.images)
    everything = load_cifar10(tmp_path).train.images.flatten(1).tolist()
    assert sorted(torch.cat([one.training.images, one.validation.images]).flatten(1).tolist()) == sorted(everything)
    assert one.validation.images.flatten(1).tolist() != everything[-30:]  # chosen at random
    for name, shape, dtype in (("digits", (1, 28, 28), torch.float32), ("colour_digits", (3, 16, 16), torch.uint8)):
        parts = load_pictures(name, None, 200)
        assert [len(part) for part in (parts.training, parts.validation, parts.test)] == [1_000, 200, 597]
        assert parts.test.images.shape[1:] == shape
        assert parts.test.images.dtype == dtype
        assert "scikit-learn" in parts.title
    with pytest.raises(ValueError, match="no pictures 'x'; known: mnist, "):
        load_pictures("x")
    with pytest.raises(ValueError, match="between 1 and 99 images; got 100"):
        load_pictures("cifar10", tmp_path, 100)


# ---- row 22 -----------------------------------------------------------------------------------------


def test_22_nothing_there(tmp_path):
    (tmp_path / "ptb.zip").write_bytes(b"")  # another data set's
    for load, name in ((load_cifar10, TAR), (load_cifar10_subset, SUBSET)):
        with pytest.raises(FileNotFoundError, match=rf"{name}.*--data-root DIR"):
            load(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_22_truncated_batch_or_tar(keep, tmp_path):
    folder, _ = write_cifar_batches(tmp_path / BATCHES)
    path = tmp_path / "other" / TAR
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, BATCHES)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{TAR}.* truncated or damaged"):
        load_cifar10(tmp_path / "other")
    path = folder / TRAIN_BATCHES[2]
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{TRAIN_BATCHES[2]}: a pickled dictionary"):
        load_cifar10(tmp_path)


def test_22_missing_and_foreign_batches(tmp_path):
    folder, parts = write_cifar_batches(tmp_path)
    (folder / TEST_BATCH).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{TEST_BATCH} not found in"):
        load_cifar10(tmp_path)
    images, labels = parts[5]
    wrong = {
        "a pickled dictionary": b"<!doctype html>",
        r"uint8 \(20, 3071\)": cifar_batch(images.reshape(20, -1)[:, 1:], labels),
        r"uint8 \(20, 3072\) and int64 \(19,\)": cifar_batch(images, labels[1:]),
        "labels 0 to 9 were expected; they are 0 to 10": cifar_batch(images, labels + (labels == 9)),
        "KeyError": pickle.dumps({b"data": None}, 4),
    }
    for words, contents in wrong.items():
        (folder / TEST_BATCH).write_bytes(contents)
        with pytest.raises(ValueError, match=words):
            load_cifar10(tmp_path)


def test_pickles_run_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made by a pickle"),)

    folder, _ = write_cifar_batches(tmp_path)
    (folder / TEST_BATCH).write_bytes(pickle.dumps({b"data": Attack(), b"labels": [1]}, 2))
    with pytest.raises(ValueError, match="which no such file needs"):
        load_cifar10(tmp_path)
    assert not (tmp_path / "made by a pickle").exists()


def test_22_images_that_are_not_what_they_should_be(tmp_path):
    write_cifar_images(tmp_path)
    path = tmp_path / "test/frog/9999.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"frog/9999\.png: an image was expected"):
        load_cifar10(tmp_path)
    Image.new("RGB", (32, 31)).save(path)
    with pytest.raises(ValueError, match=r"frog/9999\.png: an image of 32x32 pixels was expected; got 32x31"):
        load_cifar10(tmp_path)
    path.unlink()
    Image.new("RGB", (32, 32)).save(tmp_path / "test/stray.png")
    with pytest.raises(ValueError, match=r"stray\.png: images were expected in train/<class>/"):
        load_cifar10(tmp_path)


def test_22_damaged_zip(tmp_path):
    write_cifar_images(tmp_path / "made")
    path = tmp_path / "cifar10.zip"
    zipped(tmp_path / "made", path)
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match=r"cifar10\.zip is a truncated or damaged zip"):
        load_cifar10(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat/1.txt", "no image")
    with pytest.raises(ValueError, match="has no images in train/<class>/ and test/<class>/"):
        load_cifar10(tmp_path)


def test_22_subsets_that_are_not_what_they_should_be(tmp_path):
    path = tmp_path / SUBSET
    wrong = {
        r"\(520, 3, 32, 32\) and \(519,\)": {"labels": colour_images(519, 0)[1]},
        "float32": {"images": np.zeros((520, 3, 32, 32), np.float32)},
        "labels 0 to 9 were expected; they are 10": {"labels": np.full(520, 10, np.uint8)},
    }
    for words, changes in wrong.items():
        write_subset(tmp_path, **changes)
        with pytest.raises(ValueError, match=words):
            load_cifar10_subset(tmp_path)
    write_subset(tmp_path, 500)
    with pytest.raises(ValueError, match="more than 500 images were expected; it has 500"):
        load_cifar10_subset(tmp_path)
    for contents in (b"", b"no zip", path.read_bytes()[:1000]):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"an \.npz file with images"):
            load_cifar10_subset(tmp_path)


# ---- augmentation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_and_mirror_images(dtype):
    """Each result is one of the (2 padding + 1)^2 crops of its image, or of its mirror image, and all occur."""
    image = torch.arange(1, 2 * 5 * 4 + 1).view(1, 2, 5, 4).to(dtype)
    many = image.expand(400, -1, -1, -1)
    padded = [torch.nn.functional.pad(x, (1,) * 4) for x in (image[0], image[0].flip(2))]
    crops = [x[:, r : r + 5, c : c + 4] for x in padded for r in range(3) for c in range(3)]
    for flip in (False, True):
        found = augmented(many, 1, flip, torch.Generator().manual_seed(3))
        assert found.dtype == dtype
        which = [[i for i, crop in enumerate(crops) if torch.equal(x, crop)] for x in found]
        assert all(len(i) == 1 for i in which)
        counts = np.bincount(np.concatenate(which), minlength=18)
        expected = 400 / (18 if flip else 9)
        assert (abs(counts[: 18 if flip else 9] - expected) < 6 * expected**0.5).all()
        assert flip or not counts[9:].any()
        assert torch.equal(found, augmented(many, 1, flip, torch.Generator().manual_seed(3)))
    mirrored = augmented(many[:50], 0, True, torch.Generator().manual_seed(0))
    assert {tuple(x.flatten().tolist()) for x in mirrored} == {
        tuple(x.flatten().tolist()) for x in (image[0], image[0].flip(2))
    }
    assert augmented(many, 0, False, torch.Generator()) is many
