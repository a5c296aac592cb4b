"""The training loop of the experiments: metrics, validation, checkpoints, stops between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .training import ProgressBar, Table, as_written, read_table, stop_between_steps

CHECKPOINT, BEST, SECONDS = "checkpoint.safetensors", "best.safetensors", "seconds.csv"


@dataclass(frozen=True)
class Training:
    """What is trained. step(i) takes step i and validate() measures; both return values by name, "loss" among them.

    config has log_every and checkpoint_every, in steps, and validate_every where there is a validation.
    """

    name: str
    config: Any
    may_differ: Sequence[str]
    """Fields of the config with which a checkpoint may be resumed though they differ."""
    steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], Mapping[str, Tensor | float]]
    metrics: Sequence[str]
    shows: str
    """Format of a step's values, in the progress bar."""
    validate: Callable[[], Mapping[str, float]] | None = None
    validation: Sequence[str] = ()
    tells: str = ""
    """Format of a validation's values, above it."""
    best_by: str | None = None
    """Early stopping: a value of the validation; the model that first had its lowest is kept in best.safetensors."""


def run(
    training: Training, out: Path, resume: bool = False, after_step: Callable[[int], None] = lambda step: None
) -> int:
    """Trains to training.steps, writes checkpoint, metrics.csv and validation.csv into `out`; the step reached.

    With training.best_by also best.safetensors, a checkpoint like the other; it counts the validations of all parts of
    a training that was resumed.

    seconds.csv has the time spent in training steps, validation left out, of all parts of a training that was resumed.
    Ctrl-C stops after the step that is under way; the checkpoint is then usable, as one killed is from its last.
    Raises ValueError where `out` has a checkpoint and resume is False, where resume is True and it has none or
    one of another config, and where the loss is not finite any more.
    """
    t, config, path = training, training.config, out / CHECKPOINT
    if path.exists() and not resume:
        raise ValueError(f"{path} exists: go on from it with --resume, or write elsewhere with --out DIR")
    step = checkpoint.resume(path, t.name, config, t.model, t.optimizer, t.may_differ) if resume else 0
    metrics = Table(out / "metrics.csv", t.metrics, step)
    validations = Table(out / "validation.csv", t.validation, step) if t.validate else None
    times = Table(out / SECONDS, ("seconds",), step)
    seconds = times.last["seconds"] if times.last else 0.0
    before = read_table(validations.path) if t.best_by and validations else []
    lowest = min((float(row[t.best_by or ""]) for row in before), default=inf)
    saved = step
    with ProgressBar("training", t.steps, step, t.shows) as bar, stop_between_steps() as asked_to_stop:
        while step < t.steps and not asked_to_stop():
            begun = time.perf_counter()
            measured = t.step(step)
            step += 1
            seconds += time.perf_counter() - begun
            last = step == t.steps
            if last or step % config.log_every == 0:
                row = {name: float(value) for name, value in measured.items()}
                _check_finite(row["loss"], step, path, saved)
                metrics.add(step, row)
                times.add(step, {"seconds": seconds})
                bar.update(step, **row)
            if t.validate and validations and (last or step % config.validate_every == 0):
                found = t.validate()
                validations.add(step, found)
                if t.best_by and as_written(found[t.best_by]) < lowest:
                    lowest = as_written(found[t.best_by])
                    checkpoint.save_training(out / BEST, t.name, config, step, t.model, t.optimizer)
                bar.print(f"step {step}: {t.tells.format(**found)}")
            if step % config.checkpoint_every == 0 and not last:
                _check_finite(float(measured["loss"]), step, path, saved)
                checkpoint.save_training(path, t.name, config, step, t.model, t.optimizer)
                saved = step
            after_step(step)
        checkpoint.save_training(path, t.name, config, step, t.model, t.optimizer)
    return step


def report(name: str, step: int, steps: int, out: Path) -> None:
    """Says what to do next with what run() wrote."""
    path = out / CHECKPOINT
    if step < steps:
        print(f"stopped after {step} of {steps} steps; {path} is usable: --resume goes on from it")
    else:
        found = out / BEST if (out / BEST).exists() else path
        print(f"{step} steps; now: hyperfast evaluate {name} --checkpoint {found}")


def _check_finite(loss: float, step: int, path: Path, saved: int) -> None:
    if not abs(loss) < inf:
        kept = f"{path} has step {saved}" if saved else "there is no checkpoint yet"
        raise ValueError(f"the loss is {loss} at step {step}; {kept}. A smaller --config.learning_rate may help")
