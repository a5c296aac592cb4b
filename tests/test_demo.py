"""The demo, from the command to the report, and its checkpoint."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from hyperfast import cli
from hyperfast.data import load_digits
from hyperfast.experiments import checkpoint
from hyperfast.experiments.demo.config import Config
from hyperfast.experiments.demo.evaluate import compare, evaluate
from hyperfast.experiments.demo.train import train


def quiet(step, metrics):
    pass


def test_demo_writes_a_self_contained_report(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--steps", "60", "--members", "40"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("src='data:image/png;base64,") == 4
    assert not re.search(r"(src|href)='?https?:", page)
    out = capsys.readouterr().out
    for words in ("one network, mean accuracy", "ensemble of 40, majority vote", "PyTorch, loop", "60 steps"):
        assert words in out
        assert words in page
    tensors, about = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert about["step"] == 60
    assert any(name.startswith("model.extractor") for name in tensors)


def test_training_learns_and_the_ensemble_is_better_than_its_members(tmp_path):
    data = load_digits()
    net, hypernetwork, _ = train(Config(steps=700), data, tmp_path / "c.safetensors", quiet)
    result = evaluate(net, hypernetwork, data, 60)
    assert result.ensemble_accuracy > 0.9
    assert result.ensemble_accuracy > result.member_accuracy.mean()
    assert result.largest_difference < 1e-5
    assert result.filters.shape == (4, 32, 8, 8)


def test_resumed_training_is_bitwise_the_same(tmp_path):
    data = load_digits()
    train(Config(steps=30), data, tmp_path / "whole.safetensors", quiet)
    stops = iter(range(100))

    def stop(step, metrics):
        if next(stops) == 9:
            signal.raise_signal(signal.SIGINT)

    _, _, reached = train(Config(steps=30), data, tmp_path / "parts.safetensors", stop)
    assert reached == 10
    _, _, reached = train(Config(steps=30), data, tmp_path / "parts.safetensors", quiet)
    assert reached == 30
    whole, parts = (checkpoint.load(tmp_path / f"{n}.safetensors")[0] for n in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_ctrl_c_leaves_a_usable_checkpoint(tmp_path):
    command = [sys.executable, "-m", "hyperfast.cli", "demo", "--out", str(tmp_path), "--steps", "1000000", "--members", "20"]  # fmt: skip
    # On a terminal the bar is drawn as it goes on, and tells when the training is under way.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"FORCE_COLOR": "1"}
    )
    shown = ""
    while "cross-entropy" not in shown:
        some = os.read(process.stdout.fileno(), 4096).decode(errors="replace")
        assert some, shown
        shown += some
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "is usable" in out
    _, about = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert about["step"] > 0


def test_checkpoints_of_others_are_refused(tmp_path, capsys):
    data = load_digits()
    path = tmp_path / "checkpoint.safetensors"
    train(Config(steps=2), data, path, quiet)
    with pytest.raises(ValueError, match="another configuration"):
        train(Config(steps=3), data, path, quiet)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path} is not a readable safetensors checkpoint"):
        checkpoint.load(path)
    assert cli.main(["demo", "--out", str(tmp_path), "--steps", "2"]) == 1
    assert "not a readable" in capsys.readouterr().err
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of hyperfast"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": torch.ones(2)}, {"step": 1})

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"a": torch.zeros(2)}, {"step": 2})
    tensors, about = checkpoint.load(path)
    assert about == {"step": 1}
    assert tensors["a"].tolist() == [1, 1]


def test_compare_computes_the_same_three_ways(tmp_path):
    data = load_digits()
    net, hypernetwork, _ = train(Config(steps=1), data, tmp_path / "c.safetensors", quiet)
    seconds, difference = compare(net, data.test_images, hypernetwork.sampler()(torch.arange(9)).detach(), turns=1)
    assert set(seconds) == {"hyperfast", "PyTorch, loop", "PyTorch, vmap"}
    assert difference < 1e-6
