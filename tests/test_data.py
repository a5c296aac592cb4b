"""Readers of data sets: what they give, and what they say of files that are not what they should be (row 22)."""

import gzip

import numpy as np
import pytest
import torch
from made_up import digits, real_data_root, write_idx, write_mnist

from hyperfast.data import data_root, load_mnist
from hyperfast.data.mnist import FILES, read_idx, read_images

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.fixture
def root(tmp_path):
    write_mnist(tmp_path / "mnist")
    return tmp_path


def test_images_and_labels_are_what_the_files_say(root):
    mnist = load_mnist(root)
    images, labels = digits(300, seed=1)
    assert mnist.train.images.dtype == torch.float32
    assert mnist.train.labels.dtype == torch.int64
    assert mnist.train.images.shape == (300, 1, 28, 28)
    assert torch.equal(mnist.train.images[:, 0], torch.from_numpy(images).float() / 255)
    assert torch.equal(mnist.train.labels, torch.from_numpy(labels).long())
    assert len(mnist.test) == 60


def test_split_holds_out_the_last_training_images(root):
    mnist = load_mnist(root)
    training, validation, test = mnist.split(50)
    assert (len(training), len(validation), len(test)) == (250, 50, 60)
    assert torch.equal(torch.cat([training.images, validation.images]), mnist.train.images)
    assert torch.equal(validation.labels, mnist.train.labels[250:])
    for count in (0, 300):
        with pytest.raises(ValueError, match="validation must lie between 1 and 299 images"):
            mnist.split(count)


def test_the_root_is_given_or_in_the_environment(root, monkeypatch):
    monkeypatch.setenv("HYPERFAST_DATA", str(root))
    assert data_root() == root
    assert len(load_mnist().train) == 300
    assert len(load_mnist(root / "mnist").train) == 300  # the four files directly under the root
    assert data_root("/") != root  # what is given comes first


def test_a_missing_folder_or_file_says_what_and_where(root, monkeypatch):
    monkeypatch.delenv("HYPERFAST_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data-root DIR.*HYPERFAST_DATA"):
        load_mnist()
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--data-root.*HYPERFAST_DATA"):
        load_mnist(root / "nowhere")
    (root / "mnist" / TEST_LABELS).unlink()
    with pytest.raises(FileNotFoundError) as missing:
        load_mnist(root)
    message = str(missing.value)
    assert message.startswith(f"mnist: {TEST_LABELS} not found in {root / 'mnist'}")
    assert "--data-root" in message
    assert "HYPERFAST_DATA" in message


def refused(root, file: str, words: str):
    with pytest.raises(ValueError, match=words) as problem:
        load_mnist(root)
    assert str(root / "mnist" / file) in str(problem.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97])
def test_22_truncated_gzip(root, file, keep):
    path = root / "mnist" / file
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refused(root, file, "truncated or damaged gzip file")


def test_22_damaged_gzip(root):
    path = root / "mnist" / TRAIN_IMAGES
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    refused(root, TRAIN_IMAGES, "truncated or damaged gzip file")


@pytest.mark.parametrize("foreign", [b"", b"<!doctype html><title>404</title>"])
def test_22_foreign_file_under_the_name(root, foreign):
    (root / "mnist" / TRAIN_IMAGES).write_bytes(foreign)
    refused(root, TRAIN_IMAGES, "is not a gzip file")
    (root / "mnist" / TRAIN_IMAGES).write_bytes(gzip.compress(foreign))
    refused(root, TRAIN_IMAGES, "is no idx3 file of unsigned bytes: it should begin with 00 00 08 03")


def test_22_wrong_magic(root):
    """Labels where images belong."""
    write_idx(root / "mnist" / TEST_IMAGES, np.zeros(60, np.uint8))
    refused(root, TEST_IMAGES, "should begin with 00 00 08 03, not with 00 00 08 01")


def test_22_header_cut_short(root):
    (root / "mnist" / TEST_IMAGES).write_bytes(gzip.compress(bytes((0, 0, 8, 3, 0, 0))))
    refused(root, TEST_IMAGES, "a header of 16 bytes was expected; it has 6")


@pytest.mark.parametrize("change", [-5, 3])
def test_22_payload_of_another_size_than_the_header_says(root, change):
    path = root / "mnist" / TEST_LABELS
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:change] if change < 0 else data + bytes(change)))
    refused(root, TEST_LABELS, f"header announces 60 = 60 bytes, but {60 + change} follow")


def test_22_more_labels_than_images(root):
    write_idx(root / "mnist" / TRAIN_LABELS, np.zeros(301, np.uint8))
    refused(root, TRAIN_LABELS, "has 301 labels for the 300 images")


def test_22_labels_and_images_out_of_range(root):
    write_idx(root / "mnist" / TRAIN_LABELS, np.full(300, 10, np.uint8))
    refused(root, TRAIN_LABELS, "labels 0 to 9 were expected; got 10")
    write_idx(root / "mnist" / TRAIN_IMAGES, np.zeros((300, 32, 32), np.uint8))
    refused(root, TRAIN_IMAGES, r"images of 28x28 pixels were expected; its header says \(32, 32\)")


def test_idx_files_may_be_unzipped_and_empty(tmp_path):
    path = write_idx(tmp_path / "images.gz", digits(7, 0)[0])
    plain = tmp_path / "images"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    assert torch.equal(read_images(plain), read_images(path))
    assert read_idx(write_idx(tmp_path / "none", np.zeros((0, 28, 28), np.uint8)), 3).shape == (0, 28, 28)


def test_mnist_itself_or_its_stand_in(tmp_path):
    """The published facts where the data set is there, and the stand-in's where it is not."""
    root = real_data_root()
    real = root is not None and (root / "mnist").is_dir()
    mnist = load_mnist(root if real else write_mnist(tmp_path, 6_000, 1_000))
    counts = torch.bincount(mnist.train.labels, minlength=10).tolist()
    if real:
        assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert abs(mnist.train.images.mean() - 0.1307) < 1e-4
        assert [len(part) for part in mnist.split()] == [55_000, 5_000, 10_000]
    else:
        assert sum(counts) == 6_000
        assert [len(part) for part in mnist.split()] == [1_000, 5_000, 1_000]
    assert mnist.test.images.min() == 0
    assert mnist.test.images.max() <= 1
    assert set(mnist.test.labels.tolist()) == set(range(10))
