"""What every training loop needs: draws by step, stops between steps, metrics as CSV, a progress bar."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import ranks


def generator_at(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one step's draws, which depend on the numbers alone: resumed training is the same training."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step, stream)).generate_state(1)[0]))


class EpochBatches:
    """batches(step): the indices [batch] int64 of a step's batch. Every epoch is `count` indices in a new order, which
    depends on (seed, epoch) alone; what is left over at its end is in no batch.

    Raises ValueError where there are fewer than a batch of them.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < batch:
            raise ValueError(f"config.batch must be at most the {count} images to train on; got {batch}")
        self._count, self._batch, self._seed = count, batch, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> torch.Tensor:
        epoch, at = divmod(step, self._count // self._batch)
        if epoch != self._epoch:
            self._order = torch.randperm(self._count, generator=generator_at(self._seed, epoch, 1))
            self._epoch = epoch
        return self._order[at * self._batch : (at + 1) * self._batch]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, torch's own generators of the CPU and of `device` start from `seed`; outside they are as they were."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def descend(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float, rate: float | None = None
) -> torch.Tensor:
    """One step down the loss, a mean over ranks, its gradient scaled to a norm of at most `clip`; the norm before. rate: of
    learning, from now.
    """
    _differentiate(model, optimizer, loss, rate)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return norm


def descend_unclipped(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float | None = None
) -> None:
    """One step down the loss, a mean over ranks. rate: of learning, from now."""
    _differentiate(model, optimizer, loss, rate)
    optimizer.step()


def _differentiate(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float | None
) -> None:
    if rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    ranks.average_gradients(model.parameters())


def half_cosine(first: float, last: float, share: float) -> float:
    """From `first` at a share of 0 down to `last` at 1 and beyond."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(1, share)))


@contextlib.contextmanager
def stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Yields asked(): whether Ctrl-C was pressed, or SIGTERM came. The loop looks between steps, where model and optimizer
    agree.

    A second one ends the process at once, Ctrl-C by KeyboardInterrupt. Outside the main thread, where Python takes no
    signals, asked() is always False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(number, frame) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class Table:
    """A CSV file with a column "step" and one row per call of add().

    It goes on behind the rows up to `step`, and drops those that a run which was killed wrote after them. last: the
    values of the row it goes on behind, None where there is none. written=False: there is no file.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int, written: bool = True) -> None:
        self.path, self.columns, self.last, self.written = path, ("step", *columns), None, written
        if not written:
            return
        rows = [row for row in read_table(path) if int(row["step"]) <= step] if step and path.exists() else []
        self.last = {name: float(rows[-1][name]) for name in columns} if rows else None
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(scratch, path)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if not self.written:
            return
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, *(_FORMAT.format(values[name]) for name in self.columns[1:])])


_FORMAT = "{:.7g}"


def as_written(value: float) -> float:
    """The value that a Table's file gives back."""
    return float(_FORMAT.format(value))


def read_table(path: Path) -> list[dict[str, str]]:
    """The whole rows of a CSV file; a last one that was cut short is dropped."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def read_columns(path: Path, *names: str) -> list[list[float]]:
    """Columns of a CSV file; empty where there is none."""
    rows = read_table(path) if path.exists() else []
    return [[float(row[name]) for row in rows] for name in names]


class ProgressBar:
    """A context manager: rich's bar over `total` steps; `shows` formats the values given, as "loss {loss:.2f}"."""

    def __init__(self, what: str, total: int, done: int = 0, shows: str = "", visible: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        shown = TextColumn("{task.fields[shown]}")
        self._bar = Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), shown, disable=not visible
        )
        self._task = self._bar.add_task(what, total=total, completed=done, shown="")
        self._shows = shows

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._bar.stop()

    def resize(self, total: int) -> None:
        """Where the number of steps was not known before."""
        self._bar.update(self._task, total=total)

    def update(self, done: int, **values: float) -> None:
        self._bar.update(self._task, completed=done)
        if values:
            self._bar.update(self._task, shown=self._shows.format(**values))

    def print(self, line: str) -> None:
        """Above the bar."""
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False)
