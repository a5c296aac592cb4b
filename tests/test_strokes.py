"""Row 22 and what is read: IAM-OnDB's stroke files in both forms, damaged and missing ones, the embedded outlines."""

import numpy as np
import pytest
import torch
from made_up import handwritten_lines, real_data_root, stroke_xml, write_iam

from hyperfast.data import load_handwriting, strokes_of
from hyperfast.data.strokes import IAM_PARTS, read_stroke_xml

DATA = real_data_root()


def test_a_line_of_xml(tmp_path):
    strokes = [np.array([[3, 5], [4, 7], [4, 8]]), np.array([[10, 2]])]
    (tmp_path / "a.xml").write_text(stroke_xml(strokes))
    line = read_stroke_xml(tmp_path / "a.xml")
    assert line.dtype == torch.float32
    assert line.tolist() == [[0, 0, 0], [1, 2, 0], [0, 1, 1], [6, -6, 1]]


def as_npz(folder, handwriting, **other):
    """iam_ondb_lines.npz of the lines of the official split, whose parts 1 and 2 are one there, with `other` arrays."""
    parts = ((0, handwriting.train), (1, handwriting.validation), (3, handwriting.test))
    lines = [(part, line) for part, lines in parts for line in lines]
    rows = torch.cat([line for _, line in lines]).numpy().astype(np.int16)
    arrays = {"dx": rows[:, 0], "dy": rows[:, 1], "pen_up": rows[:, 2].astype(np.uint8)}
    arrays |= {"lengths": np.array([len(line) for _, line in lines]), "split": np.array([part for part, _ in lines])}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "iam_ondb_lines.npz", **{k: v for k, v in (arrays | other).items() if v is not None})
    return folder


def equal(ours, theirs):
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_splits_and_both_forms_of_the_data_set(tmp_path):
    write_iam(tmp_path / "iam_ondb")
    official, graves = (load_handwriting("iam_ondb", tmp_path, split) for split in ("official", "graves"))
    assert [len(p) for p in (official.train, official.validation, official.test)] == [4, 8, 4]
    assert [len(p) for p in (graves.train, graves.validation, graves.test)] == [12, 4, 0]
    first = handwritten_lines(4, 0)[0]
    for read, written in zip(strokes_of(official.train[0]), first, strict=True):
        assert (read + first[0][0] == written).all()
    assert equal(graves.train[:4], official.train)
    assert equal(graves.validation, official.validation[:4])
    again = load_handwriting("iam_ondb", as_npz(tmp_path / "iam_ondb_strokes", official).parent, "official")
    assert equal(again.validation, official.validation)
    plain = load_handwriting("iam_ondb", as_npz(tmp_path / "root", official), "official")
    for part in ("train", "validation", "test"):
        assert equal(getattr(plain, part), getattr(official, part))


@pytest.mark.skipif(
    DATA is None or not (DATA / "iam_ondb_strokes").is_dir(),
    reason="the real data set is not here; made-up files above",
)
def test_the_real_lines():
    lines = load_handwriting("iam_ondb", DATA)
    assert [len(part) for part in (lines.train, lines.validation, lines.test)] == [10_741, 1_438, 0]
    assert sum(map(len, lines.validation)) == 885_964
    assert all(line[-1, 2] == 1 and not line[0, :2].any() for line in lines.validation)


def test_embedded_lines_are_outlines_of_digits():
    lines = load_handwriting("embedded")
    assert [len(part) for part in (lines.train, lines.validation, lines.test)] == [100, 25, 25]
    assert min(map(len, lines.train)) >= 300
    for stroke in strokes_of(lines.train[0]):
        assert stroke[0] == pytest.approx(stroke[-1], abs=1e-4)  # closed
    assert equal(load_handwriting("embedded").test, lines.test)


GOOD = stroke_xml(handwritten_lines(1, 0)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[: len(GOOD) // 2], "ParseError"),
        (GOOD.replace("ISO-8859-1", "no-such"), "was expected"),
        ("no xml", "ParseError"),
        ("", "ParseError"),
        (GOOD.replace("StrokeSet", "Strokes"), "it has none"),
        (GOOD.replace("x=", "z=", 1), "KeyError"),
        (GOOD.replace('time="0.01"', "", 1).replace('x="', 'x="?', 1), "ValueError"),
        (GOOD.replace('x="', 'x="nan" z="', 1), "not finite"),
    ],
)
def test_22_damaged_xml_is_named(tmp_path, content, message):
    path = sorted(write_iam(tmp_path).rglob("*.xml"))[0]
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as problem:
        load_handwriting("iam_ondb", tmp_path)
    assert str(path) in str(problem.value)
    assert "a StrokeSet of Strokes of Points" in str(problem.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pen_up": None}, "arrays dx, dy, pen_up, lengths, split was expected"),
        ({"dx": np.array(["left"])}, "arrays dx, dy, pen_up"),
        ({"dx": np.array([object()])}, "allow_pickle"),
        ({"dy": np.zeros(3)}, r"of one length; got dx \("),
        ({"lengths": np.ones(12, int)}, "add up to its"),
        ({"pen_up": None, "dx": None, "dy": None, "lengths": None, "split": None}, "arrays dx, dy"),
        ({"split": np.full(12, -1)}, "0 are for training"),
    ],
)
def test_22_foreign_npz_is_named(tmp_path, arrays, message):
    lines = load_handwriting("iam_ondb", write_iam(tmp_path / "xml", 3), "official")
    folder = as_npz(tmp_path / "npz", lines, **arrays)
    with pytest.raises(ValueError, match=message) as problem:
        load_handwriting("iam_ondb", folder)
    assert str(folder / "iam_ondb_lines.npz") in str(problem.value)


@pytest.mark.parametrize("kind", ["truncated", "no zip", "empty", "array"])
def test_22_damaged_npz_is_named(tmp_path, kind):
    path = tmp_path / "iam_ondb_lines.npz"
    as_npz(tmp_path, load_handwriting("embedded"))
    if kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes({"truncated": path.read_bytes()[:5_000], "no zip": b"no zip", "empty": b""}[kind])
    with pytest.raises(ValueError, match="was expected") as problem:
        load_handwriting("iam_ondb", tmp_path)
    assert str(path) in str(problem.value)


def test_22_pen_up_is_0_or_1(tmp_path):
    lines = load_handwriting("iam_ondb", write_iam(tmp_path / "xml", 3), "official")
    count = sum(len(line) for part in (lines.train, lines.validation, lines.test) for line in part)
    with pytest.raises(ValueError, match="pen_up of 0 or 1"):
        load_handwriting("iam_ondb", as_npz(tmp_path / "npz", lines, pen_up=np.full(count, 2)))


def test_22_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither iam_ondb_lines\.npz nor the folder lineStrokes") as problem:
        load_handwriting("iam_ondb", tmp_path)
    assert str(tmp_path) in str(problem.value)
    (write_iam(tmp_path) / "testset_v.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"testset_v\.txt not found"):
        load_handwriting("iam_ondb", tmp_path)
    for part in IAM_PARTS:
        (tmp_path / f"{part}.txt").write_text("z99-999z")
    with pytest.raises(ValueError, match="lines of trainset and testset_v were expected"):
        load_handwriting("iam_ondb", tmp_path)
    with pytest.raises(ValueError, match="known: iam_ondb, embedded"):
        load_handwriting("unipen")
    with pytest.raises(ValueError, match="known: graves, official"):
        load_handwriting("iam_ondb", tmp_path, "random")
