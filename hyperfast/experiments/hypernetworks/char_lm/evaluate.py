"""Bits per character of the validation and test texts, samples, and what a HyperLSTM does to its weights meanwhile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data import Text
from ....nn import HyperLSTM
from ....reference.hyper_lstm import LAYER_NORM_EPSILON
from ...tables import write_json
from ..recurrence import weight_changes
from .config import Evaluation
from .figures import draw
from .model import CharacterModel
from .train import load


@torch.no_grad()
def changes_over(model: CharacterModel, symbols: Tensor) -> Tensor:
    """[4,T-1]: weight_changes of a HyperLSTM that reads symbols [T]."""
    return weight_changes(model(symbols.unsqueeze(1), return_scales=True)[2])


@torch.no_grad()
def shown_cells(model: CharacterModel, symbols: Tensor) -> Tensor:
    """[T*H]: phi(c) of the last layer at every character, where the output is sigmoid(o) * phi(c)."""
    state, cells = None, []
    for symbol in symbols:
        _, state = model(symbol.view(1, 1), state)
        cells.append(state.c[-1, 0])
    c, recurrence = torch.stack(cells), model.recurrence
    weights = dict(recurrence.named_parameters())
    layer = model.config.layers - 1
    if f"ln_weight_l{layer}" in weights:
        gain, shift = weights[f"ln_weight_l{layer}"][4], weights[f"ln_bias_l{layer}"][4]
        c = F.layer_norm(c, c.shape[-1:], gain, shift, LAYER_NORM_EPSILON)
    return torch.tanh(c).flatten()


def samples(model: CharacterModel, text: Text, settings: Evaluation) -> dict[str, str]:
    """{temperature: text}."""
    drawn = {}
    for temperature in settings.temperatures:
        generator = torch.Generator().manual_seed(settings.seed)
        numbers, _ = model.sample(settings.sample_length, temperature, generator, int(text.test[0]))
        drawn[f"{temperature:g}"] = text.decode(numbers)
    return drawn


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate hypernetworks/char_lm`: evaluation.json, samples.txt, figures."""
    model, config, text, step = load(path, data_root, device)
    out.mkdir(parents=True, exist_ok=True)
    about = {"checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config)}
    for name in ("validation", "test"):
        part = getattr(text, name)[: settings.characters].to(device)
        about[f"{name}_bits_per_character"] = model.bits_per_character(part)
        about[f"{name}_characters"] = len(part) - 1
    about["parameters"] = sum(p.numel() for p in model.parameters())
    write_json(out / "evaluation.json", about)
    drawn = samples(model, text, settings)
    (out / "samples.txt").write_text("\n\n".join(f"temperature {t}\n\n{sample}" for t, sample in drawn.items()) + "\n")
    print(
        f"step {step}: validation {about['validation_bits_per_character']:.4f}, test "
        f"{about['test_bits_per_character']:.4f} bits per character; samples in {out / 'samples.txt'}"
    )
    numbers = text.validation[: settings.histogram_characters].to(device)
    changes = None
    if isinstance(model.recurrence, HyperLSTM):
        generator = torch.Generator().manual_seed(settings.seed)
        sampled, _ = model.sample(settings.shown, 0.8, generator, int(text.test[0]))
        changes = text.decode(sampled), changes_over(model, sampled.to(device))
    cells = None if config.cell == "hyper_rnn" else shown_cells(model, numbers)
    runs = [path.parent, *map(Path, settings.beside)]
    for name in figures:
        written = draw(name, runs, out, changes, cells)
        print(f"{name}: {written or 'this cell has none'}")
