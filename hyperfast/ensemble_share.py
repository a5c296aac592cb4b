"""A rank's share of an ensemble: which members it has, how ranks come together, and the file that keeps its sums."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .ensemble_sums import Sums
from .ops.process_group import process_group

T = TypeVar("T")
# Between two writes of the file: what is lost with a process that is killed.
_SECONDS = 30


class Ranks:
    """The ranks of `group`, a process group or a DeviceMesh; None: this process alone. `call`: whose errors they are."""

    def __init__(self, group: Any, call: str = "predict") -> None:
        self.call = call
        self.group = None if group is None else process_group(group)
        self.rank = 0 if self.group is None else dist.get_rank(self.group)
        self.size = 1 if self.group is None else dist.get_world_size(self.group)

    def members(self, total: int, rank: int | None = None) -> range:
        """Those of `rank` (None: this one), next to each other; no rank has two more than another."""
        rank = self.rank if rank is None else rank
        return range(total * rank // self.size, total * (rank + 1) // self.size)

    def together(self, work: Callable[[], T], about: Callable[[T], Any]) -> T:
        """work() of this rank, after every rank's has ended and about(work()) is the same on all of them.

        Where a rank's raised, that rank raises its own error and the others RuntimeError with its words. Raises
        RuntimeError where a rank was lost and ValueError where they differ.
        """
        if self.group is None:
            return work()
        failure: Exception | None = None
        mine: tuple[str | None, Any]
        try:
            found = work()
            mine = None, about(found)
        except Exception as problem:  # whatever it is: the others must not wait for a rank that gave up
            failure, mine = problem, (f"{type(problem).__name__}: {problem}", None)
        every: list[Any] = [None] * self.size
        with self.losses():
            dist.all_gather_object(every, mine, group=self.group)
        if failure is not None:
            raise failure
        for rank, (error, _) in enumerate(every):
            if error is not None:
                raise RuntimeError(f"{self.call} failed on rank {rank} of the group: {error}")
        if any(other != mine for other in every):
            calls = "; ".join(f"rank {rank}: {about}" for rank, (_, about) in enumerate(every))
            raise ValueError(f"group: every rank must call {self.call} with the same arguments; got {calls}")
        return found

    def rows(self, mine: Tensor, total: int) -> Tensor:
        """[total,...]: every rank's rows, one for each of its members; `mine` are this rank's."""
        if self.group is None:
            return mine
        every = mine.new_empty(total, *mine.shape[1:])
        with self.losses():
            for rank in range(self.size):
                share = self.members(total, rank)
                part = every[share.start : share.stop]
                if rank == self.rank:
                    part.copy_(mine)
                dist.broadcast(part, group=self.group, group_src=rank)
        return every

    @contextlib.contextmanager
    def losses(self) -> Iterator[None]:
        """Inside, an error of the communication says what it means."""
        try:
            yield
        except RuntimeError as lost:
            words = str(lost).splitlines()[0]
            raise RuntimeError(f"{self.call}: another rank of the group was lost or does not answer: {words}") from lost


class PartialSums:
    """The sums of a share in a file, rewritten as it goes on; without a path nothing is kept.

    about: what must be the same for a file to be gone on from. Raises ValueError where the file is damaged or of
    another call.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.batches: list[dict[str, Any]] = []
        self.written = time.monotonic()
        if path is not None and path.exists():
            try:
                kept = torch.load(path, weights_only=True)
                found, self.batches = kept["about"], kept["batches"]
            except Exception as problem:
                raise ValueError(f"partial: {path} cannot be read; delete it to begin anew ({problem})") from problem
            if found != about:
                odd = ", ".join(f"{name} {found.get(name)} there, {value} here" for name, value in about.items()
                                if found.get(name) != value)  # fmt: skip
                raise ValueError(f"partial: {path} is of another call ({odd}); delete it to begin anew")

    def restore(self, index: int, batch: Tensor, sums: Sums, inputs: tuple[Any, ...]) -> None:
        """Puts into `sums` what was kept of the batch at `index`, if anything was; inputs: its fingerprint."""
        if index == len(self.batches):
            self.batches.append({"inputs": inputs, "members": sums.members, "values": sums.values})
        kept = self.batches[index]
        if kept["inputs"] != inputs:
            raise ValueError(f"partial: {self.path} is of other inputs (batch {index}); delete it to begin anew")
        sums.members = kept["members"]
        sums.values = {name: value.to(batch.device) for name, value in kept["values"].items()}

    def keep(self, index: int, sums: Sums, now: bool = False) -> None:
        """Notes the batch's sums; they are on the disk within half a minute, or at once with `now`."""
        self.batches[index] |= {"members": sums.members, "values": sums.values}
        if self.path is None or not (now or time.monotonic() - self.written > _SECONDS):
            return
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        torch.save({"about": self.about, "batches": self.batches}, scratch)
        scratch.replace(self.path)
        self.written = time.monotonic()

    def remove(self) -> None:
        """Once the answer is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def fingerprint(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and a checksum of the values."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return (*tensor.shape, str(tensor.dtype), zlib.crc32(values.data))
