"""Adversarial examples against generated networks, and their detection by entropy (section 4.5, figures 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import ensemble
from ...data import Labelled
from ..attacks import fgsm, loss_gradient, mean_logits, pgd
from ..experiment import Trained
from ..figures import save_png
from ..tables import write_csv, write_json
from ..training import ProgressBar, read_table
from .config import Evaluation
from .outliers import auroc, entropies
from .task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("fgsm", "pgd")
Row = dict[str, str | int | float]
_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Judged:
    """What an ensemble says of attacked images."""

    wrong: Tensor
    """[N] bool: its largest mean probability is not the label's."""
    fooled: Tensor
    """[N], share of its members whose label is not the image's."""
    entropy: Tensor
    """[N], nats, of the mean probability."""
    disagreement: Tensor
    """[N], nats, entropy of the mean probability minus the members' mean entropy."""


def from_member(trained: Trained, first: int) -> Callable[[Tensor], Tensor]:
    """The sampler of the members from number `first` on."""
    return lambda indices: trained.sampler(indices + first)


def judge(task: Task, trained: Trained, first: int, count: int, images: Tensor, labels: Tensor) -> Judged:
    """By the members first ... first + count - 1, of images [N,C,H,W] in [0, 1] with labels [N]."""
    batches = [task.inputs(some) for some in images.split(_IMAGES_AT_ONCE)]
    wanted = ("mean_prob", "votes", "entropy", "disagreement")
    r = ensemble.predict(trained.net, batches, (from_member(trained, first), count), wanted)
    own = r.votes.gather(1, labels.unsqueeze(1)).squeeze(1)
    return Judged(r.mean_prob.argmax(1) != labels, 1 - own / count, r.entropy, r.disagreement)


@dataclass(frozen=True)
class Attacked:
    """Attacked images: those that the attacked networks classify correctly without it."""

    images: dict[str, Tensor]
    """method -> [sizes,n,C,H,W]."""
    labels: Tensor
    """[n]."""
    success: dict[str, Tensor]
    """method -> [sizes,n] bool: the attacked networks are wrong about it."""


def attack(task: Task, trained: Trained, members: int, data: Labelled, settings: Evaluation) -> Attacked:
    """The first `members` networks, by the mean of their logits, on `data` at every size; all members at once."""
    with torch.no_grad():
        theta = trained.sampler(torch.arange(members))
    x = data.images.float() / 255 if data.images.dtype == torch.uint8 else data.images
    right = mean_logits(trained.net, theta, task.inputs, x).argmax(1) == data.labels
    x, labels = x[right], data.labels[right]
    sizes = len(settings.attack_sizes)
    epsilon = torch.tensor(settings.attack_sizes, device=x.device).repeat_interleave(len(x))
    every, wanted = x.repeat(sizes, 1, 1, 1), labels.repeat(sizes)
    images, success = {}, {}

    def gradient(moved: Tensor) -> Tensor:
        return loss_gradient(trained.net, theta, task.inputs, moved, wanted)

    for method in METHODS:
        if not len(x):
            break
        if method == "fgsm":
            # The same gradient for every size.
            of_clean = loss_gradient(trained.net, theta, task.inputs, x, labels).repeat(sizes, 1, 1, 1)
            moved = fgsm(partial(_always, of_clean), every, epsilon)
        else:
            moved = pgd(gradient, every, epsilon, settings.pgd_steps, settings.pgd_step_size)
        wrong = mean_logits(trained.net, theta, task.inputs, moved).argmax(1) != wanted
        images[method], success[method] = (v.unflatten(0, (sizes, len(x))) for v in (moved, wrong))
    return Attacked(images, labels, success)


def _always(value: Tensor, _: Tensor) -> Tensor:
    return value


def rows_of(
    task: Task, trained: Trained, attacked: Attacked, first: int, count: int, clean: Tensor, settings: Evaluation
) -> list[Row]:
    """One row for each method and size, as judged by `count` members from `first` on. clean: their entropies of clean images.

    detected: share with an entropy above the one that only false_positive_rate of the clean images exceed.
    """
    threshold = clean.quantile(1 - settings.false_positive_rate).item()
    rows: list[Row] = []
    for method, every in attacked.images.items():
        for size, images, success in zip(settings.attack_sizes, every, attacked.success[method], strict=True):
            found = judge(task, trained, first, count, images, attacked.labels)
            seen = (found.entropy > threshold).double()
            rows.append({
                "attack": method, "epsilon": size, "images": len(images),
                "success": _mean(success), "fresh_wrong": _mean(found.wrong), "fooled_networks": _mean(found.fooled),
                "entropy": _mean(found.entropy), "disagreement": _mean(found.disagreement),
                "auroc": auroc(clean, found.entropy.cpu()), "detected": _mean(seen),
                "successful": int(success.sum()), "detected_of_successful": _mean(seen[success]),
            })  # fmt: skip
    return rows


def _mean(values: Tensor) -> float:
    """NaN of none."""
    return values.double().mean().item()


def transfer(
    task: Task, trained: Trained, data: Labelled, clean: Tensor, settings: Evaluation, out: Path
) -> list[Path]:
    """Figure 4: attacks on one network, tried on others: transfer.png, .csv."""
    others = _at_most(trained, settings.transfer_networks + 1) - 1
    if not others:
        raise ValueError("attacks on one network are tried on others; there is only one network in the checkpoint")
    attacked = attack(task, trained, 1, data, settings)
    if not len(attacked.labels):
        return [write_json(out / "transfer.json", {"attacked": 0, "networks": others})]
    of_clean = entropies(task, _shifted(trained, 1), clean, others)
    rows = rows_of(task, trained, attacked, 1, others, of_clean, settings)
    lines = {
        "the attacked network is wrong": "success",
        f"of {others} others are wrong": "fooled_networks",
        "their mean prediction is wrong": "fresh_wrong",
    }
    picture = draw({"": rows}, lines, "share")
    return [
        save_png(picture, out / "transfer.png"),
        write_csv(out / "transfer.csv", [{"networks": others, **r} for r in rows]),
    ]


def ensembles(
    task: Task, trained: Trained, data: Labelled, clean: Tensor, settings: Evaluation, out: Path
) -> list[Path]:
    """Figure 5: attacks on ensembles, judged by as many fresh networks (where there are any), and their detection."""
    sizes = [size for size in settings.attack_ensembles if trained.members is None or size <= trained.members]
    rows: list[Row] = []
    with ProgressBar("attacks", len(sizes)) as bar:
        for done, size in enumerate(sizes, 1):
            first = size if trained.members is None else 0
            attacked = attack(task, trained, size, data, settings)
            of_clean = entropies(task, _shifted(trained, first), clean, size)
            if len(attacked.labels):
                found = rows_of(task, trained, attacked, first, size, of_clean, settings)
                rows += [
                    {"networks": size, "fresh": first > 0, "clean_entropy": _mean(of_clean), **row} for row in found
                ]
            bar.update(done)
    if not rows:
        return [write_json(out / "attacks.json", {"attacked": 0, "sizes": sizes})]
    drawn = {f"{size} networks": [row for row in rows if row["networks"] == size] for size in sizes}
    for folder in settings.beside:
        theirs = read(Path(folder))
        for count in dict.fromkeys(row["networks"] for row in theirs):
            drawn[f"{Path(folder).name}, {count:g}"] = [row for row in theirs if row["networks"] == count]
    return [
        save_png(draw(drawn, {"": "entropy"}, "entropy of the mean prediction, nats"), out / "attacks.png"),
        save_png(
            draw(drawn, {"": "detected"}, f"detected at {settings.false_positive_rate:.0%} false alarms"),
            out / "detection.png",
        ),
        write_csv(out / "attacks.csv", rows),
    ]


def read(folder: Path) -> list[Row]:
    """The rows of a folder's attacks.csv. Raises FileNotFoundError where it has none."""
    return [
        {
            name: float(row[name]) if name != "attack" else row[name]
            for name in ("attack", "networks", "epsilon", "entropy", "detected")
        }
        for row in read_table(folder / "attacks.csv")
    ]


def _at_most(trained: Trained, wanted: int) -> int:
    return wanted if trained.members is None else min(wanted, trained.members)


def _shifted(trained: Trained, first: int) -> Trained:
    return Trained(trained.net, from_member(trained, first), trained.step)


def draw(curves: Mapping[str, Sequence[Row]], columns: dict[str, str], label: str) -> Figure:
    """A panel for each attack: of each curve's rows the columns (label -> name) against epsilon."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = picture.subplots(1, len(METHODS), sharey=True)
    for axes, method in zip(panels, METHODS, strict=True):
        for curve, rows in curves.items():
            some = [row for row in rows if row["attack"] == method]
            for name, column in columns.items():
                sizes = [row["epsilon"] for row in some]
                axes.plot(sizes, [row[column] for row in some], "o-", ms=3, label=f"{curve}{name}")
        axes.set(xlabel="epsilon, share of the images' range", title=method.upper())
        axes.set_xscale("symlog", linthresh=0.01)
    panels[0].set_ylabel(label)
    panels[0].legend(fontsize=7)
    return picture
