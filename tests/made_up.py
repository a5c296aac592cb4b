"""Made-up data sets in the public formats, for tests that must not need the real ones."""

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from hyperfast.data.cifar import CLASSES, TEST_BATCH, TRAIN_BATCHES
from hyperfast.data.drawn_faces import draw_faces
from hyperfast.data.mnist import FILES

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def write_idx(path: Path, values: np.ndarray) -> Path:
    """uint8 values as a gzipped idx file."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))
    return path


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,28,28] and labels [N], uint8: a bright bar whose place tells the class, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    images = random.integers(0, 30, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 4 * (label // 2), 3 + 12 * (label % 2)
        image[row : row + 3, column : column + 9] += 225
    return images, labels


def write_mnist(folder: Path, train: int = 300, test: int = 60) -> Path:
    """The four files of a small MNIST in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for (images_file, labels_file), count, seed in ((FILES[:2], train, 1), (FILES[2:], test, 2)):
        images, labels = digits(count, seed)
        write_idx(folder / images_file, images)
        write_idx(folder / labels_file, labels)
    return folder


def handwritten_lines(count: int, seed: int) -> list[list[np.ndarray]]:
    """So many lines; a line is a list of strokes, a stroke an array [n,2] of whole positions x, y: arcs side by side."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        ends = 400 * np.arange(1, random.integers(3, 6))
        turns = [np.linspace(0, random.uniform(2, 6), random.integers(8, 15)) for _ in ends]
        lines.append([
            np.stack([end + 150 * np.cos(turn), 900 + 150 * np.sin(turn)], 1).round().astype(int)
            for end, turn in zip(ends, turns, strict=True)
        ])  # fmt: skip
    return lines


def stroke_xml(strokes: list[np.ndarray]) -> str:
    """A line in IAM-OnDB's form."""
    points = ["".join(f'<Point x="{x}" y="{y}" time="0.01"/>' for x, y in stroke) for stroke in strokes]
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?><WhiteboardCaptureSession><WhiteboardDescription>'
        '<SensorLocation corner="top_left"/></WhiteboardDescription><StrokeSet>'
        + "".join(f'<Stroke colour="black" start_time="0.0" end_time="1.0">{p}</Stroke>' for p in points)
        + "</StrokeSet></WhiteboardCaptureSession>"
    )


def write_iam(folder: Path, lines_a_part: int = 4) -> Path:
    """IAM-OnDB's folder lineStrokes and its lists of forms, one form a part and one in no list; the folder."""
    for part, name in enumerate(("trainset", "testset_v", "testset_t", "testset_f", None)):
        form = f"a0{part}-000u"
        lines = folder / "lineStrokes" / f"a0{part}" / form[:7]
        lines.mkdir(parents=True)
        for number, strokes in enumerate(handwritten_lines(lines_a_part, part), 1):
            (lines / f"{form}-{number:02}.xml").write_text(stroke_xml(strokes), encoding="latin-1")
        if name:
            (folder / f"{name}.txt").write_text(f" {form}\n")
    return folder


def real_data_root() -> Path | None:
    """The folder of the real data sets where there is one."""
    for place in (os.environ.get("HYPERFAST_DATA"), SHARED_DATA):
        if place and Path(place).is_dir():
            return Path(place)
    return None


def colour_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,3,32,32] and labels [N], uint8: every class is there, its number told by a block of one colour."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count, dtype=np.uint8) % 10)
    images = random.integers(0, 60, (count, 3, 32, 32), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 3, 8 * (label // 3) : 8 * (label // 3) + 8, 8:24] += 180
    return images, labels


class Python2Pickler(pickle._Pickler):
    """Byte strings as Python 2 pickled its strings, which is how CIFAR-10's files were written."""

    def save_string(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch: ClassVar = pickle._Pickler.dispatch | {bytes: save_string}


def cifar_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """One of the files of CIFAR-10's python version."""
    values = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": images.reshape(len(images), -1)}
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(values)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar_batches(folder: Path, a_file: int = 20) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    """The six files of CIFAR-10's python version; the folder, and their images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [colour_images(a_file, seed) for seed in range(6)]
    for name, part in zip((*TRAIN_BATCHES, TEST_BATCH), parts, strict=True):
        (folder / name).write_bytes(cifar_batch(*part))
    return folder, parts


def write_cifar_images(folder: Path, suffix: str = ".png", a_part: int = 20) -> list[tuple[np.ndarray, np.ndarray]]:
    """train/<class>/ and test/<class>/ of images; their images and labels, in the order of class and number."""
    parts = []
    for seed, part in enumerate(("train", "test")):
        images, labels = colour_images(a_part, seed)
        order = np.argsort(labels, kind="stable")
        parts.append((images[order], labels[order]))
        for number, (image, label) in enumerate(zip(*parts[-1], strict=True)):
            path = folder / part / CLASSES[label] / f"{number:04}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return parts


def write_faces(folder: Path, count: int = 12, size: tuple[int, int] = (40, 36)) -> list[np.ndarray]:
    """Pictures 000001.png, ... of drawn faces, as CelebA numbers them; their pixels [H,W,3] uint8."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, cols = size
    faces = draw_faces(count, max(size), 1).numpy().transpose(0, 2, 3, 1)[:, :rows, :cols]
    for number, face in enumerate(faces, 1):
        Image.fromarray(np.ascontiguousarray(face)).save(folder / f"{number:06}.png")
    return list(faces)
