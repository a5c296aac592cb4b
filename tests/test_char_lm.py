"""Language models of characters: texts, stateful training that resumes bitwise, evaluation from end to end."""

import gzip
import json
import math
import os
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyperfast import cli
from hyperfast.data import load_text
from hyperfast.experiments.hypernetworks.char_lm import train as training
from hyperfast.experiments.hypernetworks.char_lm.config import PRESETS, Config, Evaluation
from hyperfast.experiments.hypernetworks.char_lm.evaluate import changes_over, shown_cells
from hyperfast.experiments.hypernetworks.char_lm.model import CharacterModel
from hyperfast.experiments.loop import CHECKPOINT, SECONDS
from hyperfast.experiments.training import read_table

CPU = torch.device("cpu")
DATA = Path(os.environ.get("HYPERFAST_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
TINY = Config(
    text="embedded", units=12, hyper_units=6, embedding=2, batch=4, length=10, steps=6, validate_every=3,
    validation_characters=60, checkpoint_every=2, log_every=1,
    evaluation=Evaluation(characters=60, sample_length=20, shown=10, histogram_characters=20),
)  # fmt: skip


def made_up_ptb(folder):
    text = " a b <unk> \n c \n"
    with zipfile.ZipFile(folder / "ptb.zip", "w") as archive:
        for name in ("train", "valid", "test"):
            archive.writestr(f"ptb.{name}.txt", text)


def test_ptb_lines_lose_the_spaces_at_their_ends(tmp_path):
    made_up_ptb(tmp_path)
    text = load_text("ptb", tmp_path)
    assert text.decode(text.train) == "a b <unk>\nc\n"
    assert text.symbols == bytes(sorted(set(b"a b <unk>\nc\n")))


def test_enwik8_is_split_by_bytes(tmp_path):
    (tmp_path / "enwik8.gz").write_bytes(gzip.compress(bytes(range(200))))
    text = load_text("enwik8", tmp_path)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [180, 10, 10]
    assert text.test.tolist() == list(range(190, 200))


@pytest.mark.skipif(not (DATA / "ptb").is_dir(), reason="the real data set is not here; made-up files stand in above")
def test_the_real_texts():
    text = load_text("ptb", DATA)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [5_017_482, 393_042, 442_423]
    assert len(text.symbols) == 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("ptb.zip", b"no zip", "zip file with ptb.train.txt"), ("enwik8.gz", b"no gzip", "not a readable gzip")],
)
def test_22_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as problem:
        load_text(name.split(".")[0], tmp_path)
    assert str(tmp_path / name) in str(problem.value)


def test_22_missing_files_and_unknown_texts(tmp_path):
    for name in ("ptb", "enwik8"):
        with pytest.raises(FileNotFoundError, match=name):
            load_text(name, tmp_path)
    with pytest.raises(ValueError, match="known: ptb, enwik8, embedded"):
        load_text("text8")


def test_parameters_of_the_presets():
    """Tables 3 and 4, in millions; three rows of theirs no reading of the equations gives, see docs/hypernetworks.md."""
    expected = {
        "ptb_lstm_1000": 4.25, "ptb_lstm_1250": 6.57, "ptb_lstm_two_layers": 12.26, "ptb_layer_norm_lstm": 4.26,
        "ptb_hyper_lstm": 4.91, "paper": 4.92, "ptb_hyper_lstm_two_layers": 14.41, "enwik8_hyper_lstm": 18.71,
        "enwik8_layer_norm_hyper_lstm_2048": 26.54,
    }  # fmt: skip
    for name, millions in expected.items():
        with torch.device("meta"):
            model = CharacterModel(replace(PRESETS[name], batch=1), 205 if "enwik8" in name else 50)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions, name


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm", "hyper_lstm", "hyper_rnn"])
def test_training_resumes_bitwise(cell, tmp_path):
    config, text = replace(TINY, cell=cell), load_text("embedded")
    training.train(config, text, tmp_path / "whole", CPU)
    training.train(replace(config, steps=4), text, tmp_path / "parts", CPU)
    training.train(config, text, tmp_path / "parts", CPU, resume=True)
    tables = [read_table(tmp_path / run / "metrics.csv") for run in ("whole", "parts")]
    assert tables[0] == tables[1]
    seconds = [float(row["seconds"]) for row in read_table(tmp_path / "parts" / SECONDS)]
    assert len(seconds) == len(tables[1])
    assert seconds[0] > 0
    assert all(a < b for a, b in pairwise(seconds))
    states = [training.load(tmp_path / run / CHECKPOINT, None, CPU)[0].state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["carry_0"].abs().sum() > 0


def test_the_state_goes_on_and_starts_anew_with_an_epoch():
    text = load_text("embedded")
    config = replace(TINY, input_dropout=0.0, recurrent_dropout=0.0, output_dropout=0.0, learning_rate=0.0)
    model, optimizer = training.build(config, text, CPU)
    parts = training.places(text.train[: 4 * 21], 4)
    assert training.steps_per_epoch(parts, 10) == 2
    losses = [float(training.train_step(config, model, optimizer, parts, step)["loss"]) for step in range(4)]
    logits, _ = model.eval()(parts[:, :20].T)
    bits = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), parts[:, 1:21].T.long(), reduction="none"
    )  # fmt: skip
    assert losses[:2] == pytest.approx([bits[:10].mean().item(), bits[10:].mean().item()], rel=1e-5)
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)


def test_bits_per_character_is_that_of_one_stream():
    text = load_text("embedded")
    model, _ = training.build(TINY, text, CPU)
    part = text.validation[:2_500]  # past two of the pieces it is taken in
    logits, _ = model.eval()(part[:-1].unsqueeze(1))
    nats = torch.nn.functional.cross_entropy(logits[:, 0], part[1:].long()).item()
    assert model.bits_per_character(part) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_samples_and_pictures():
    text = load_text("embedded")
    model, _ = training.build(replace(TINY, layers=2, init="asymmetric"), text, CPU)
    drawn = [model.sample(30, 0.8, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    cold, _ = model.sample(10, 1e-6, torch.Generator().manual_seed(1))
    first, _ = model(torch.tensor([[0]]))
    assert cold[0] == first.argmax()
    changes = changes_over(model, drawn[0])
    assert changes.shape == (4, 29)
    assert (changes > 0).all()
    cells = shown_cells(model, drawn[0])
    assert cells.shape == (30 * 12,)
    assert cells.abs().max() < 1


@pytest.mark.parametrize("cell", ["lstm", "hyper_lstm"])
def test_commands(cell, tmp_path, capsys):
    """`hyperfast train` and `evaluate`, all figures."""
    options = [
        "batch=4",
        "units=8",
        "hyper-units=4",
        "length=8",
        "steps=4",
        "validate-every=2",
        "validation-characters=50",
    ]
    arguments = [word for option in options for word in (f"--config.{option.split('=')[0]}", option.split("=")[1])]
    arguments += ["--config.cell", cell, "--out", str(tmp_path)]
    assert cli.main(["train", "hypernetworks/char_lm", "--preset", "small", *arguments]) == 0
    checkpoint = ["--checkpoint", str(tmp_path / CHECKPOINT)]
    small = [
        "--evaluation.characters",
        "60",
        "--evaluation.sample-length",
        "20",
        "--evaluation.histogram-characters",
        "9",
        "--evaluation.beside",
        str(tmp_path),
    ]
    assert cli.main(["evaluate", "hypernetworks/char_lm", *checkpoint, *small]) == 0
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert about["step"] == 4
    assert 0 < about["test_bits_per_character"] < 10
    assert about["parameters"] > 0
    pictures = {"loss.png", "histogram.png"} | ({"weight_changes.png"} if cell == "hyper_lstm" else set())
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    assert "temperature 0.5" in (tmp_path / "samples.txt").read_text()
    assert cli.main(["sample", "hypernetworks/char_lm", *checkpoint, "--members", "2", "--out", "x.safetensors"]) != 0
    assert "generates no networks" in capsys.readouterr().err


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match=r"config\.units must be at least 1"):
        Config(units=0)
    with pytest.raises(ValueError, match=r"config\.layers must be 1"):
        Config(cell="hyper_rnn", layers=2)
    with pytest.raises(ValueError, match=r"too short for config\.batch"):
        training.places(torch.zeros(5), 4)
