"""The training loop of the experiments: metrics, validation, checkpoints, stops between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, ranks, ranks_norms
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
    shares: str = ""
    """Field of the config that says how many networks, images, ... step() shares out among ranks, see ranks.py; "": it
    doesn't, and runs in one process only."""
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
    Ctrl-C and SIGTERM stop after the step that is under way; the checkpoint is then usable, as one killed is from its last.
    Raises ValueError where `out` has a checkpoint and resume is False, where resume is True and it has none or
    one of another config, where training.shares cannot be shared out, and where the loss is not finite any more.

    Of several ranks the first validates and writes, and all stop after the same step. Raises ConnectionError where one is
    lost.
    """
    t, config, path = training, training.config, out / CHECKPOINT
    if path.exists() and not resume:
        raise ValueError(f"{path} exists: go on from it with --resume, or write elsewhere with --out DIR")
    step = checkpoint.resume(path, t.name, config, t.model, t.optimizer, t.may_differ) if resume else 0
    ranks.check_shares(t.name, t.shares, attrgetter(t.shares)(config) if t.shares else 0, step)
    ranks.same(t.model)
    ranks_norms.share_statistics(t.model)
    first = ranks.is_first()
    metrics = Table(out / "metrics.csv", t.metrics, step, first)
    validations = Table(out / "validation.csv", t.validation, step, first) if t.validate else None
    times = Table(out / SECONDS, ("seconds",), step, first)
    seconds = times.last["seconds"] if times.last else 0.0
    before = read_table(validations.path) if t.best_by and validations and first else []
    lowest = min((float(row[t.best_by or ""]) for row in before), default=inf)
    saved = step

    def save(path: Path) -> None:
        if first:
            checkpoint.save_training(path, t.name, config, step, t.model, t.optimizer)

    with ProgressBar("training", t.steps, step, t.shows, first) as bar, stop_between_steps() as asked_to_stop:
        while step < t.steps and not ranks.any_of(asked_to_stop()):
            begun = time.perf_counter()
            measured = t.step(step)
            step += 1
            seconds += time.perf_counter() - begun
            last = step == t.steps
            logged, kept = last or step % config.log_every == 0, step % config.checkpoint_every == 0 and not last
            if logged or kept:
                row = ranks.averages(measured)
                _check_finite(row["loss"], step, path, saved)
                if logged:
                    metrics.add(step, row)
                    times.add(step, {"seconds": seconds})
                    bar.update(step, **row)
            if t.validate and validations and (last or step % config.validate_every == 0):
                found = ranks.from_first(t.validation, t.validate)
                validations.add(step, found)
                if t.best_by and as_written(found[t.best_by]) < lowest:
                    lowest = as_written(found[t.best_by])
                    save(out / BEST)
                bar.print(f"step {step}: {t.tells.format(**found)}")
            if kept:
                save(path)
                saved = step
            after_step(step)
        save(path)
    ranks.meet()  # where a rank goes on from here, the checkpoint is there
    return step


def report(name: str, step: int, steps: int, out: Path) -> None:
    """Says what to do next with what run() wrote."""
    path = out / CHECKPOINT
    if not ranks.is_first():
        return
    if step < steps:
        print(f"stopped after {step} of {steps} steps; {path} is usable: --resume goes on from it")
    else:
        found = out / BEST if (out / BEST).exists() else path
        print(f"{step} steps; now: hyperfast evaluate {name} --checkpoint {found}")


def _check_finite(loss: float, step: int, path: Path, saved: int) -> None:
    if not abs(loss) < inf:
        kept = f"{path} has step {saved}" if saved else "there is no checkpoint yet"
        raise ValueError(f"the loss is {loss} at step {step}; {kept}. A smaller --config.learning_rate may help")
