"""Predictive entropy of images that the networks were trained on the like of, and of others (section 4.4, figures 3 and 7)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import ensemble
from ...data import Labelled
from ..experiment import Trained
from ..figures import MANY, ONE, figure, save_png
from ..tables import write_csv, write_json
from ..training import read_table
from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

LOW = 0.8  # nats: the paper says that none of its outliers has less
_IMAGES_AT_ONCE = 512


def entropies(task: Task, trained: Trained, images: Tensor, networks: int) -> Tensor:
    """[N], nats, of the mean softmax of that many networks, for images [N,C,H,W]."""
    batches = [task.inputs(some) for some in images.split(_IMAGES_AT_ONCE)]
    return ensemble.predict(trained.net, batches, (trained.sampler, networks), ("entropy",)).entropy.cpu()


def auroc(negative: Tensor, positive: Tensor) -> float:
    """Probability that a positive score is above a negative one, ties by half."""
    from sklearn.metrics import roc_auc_score

    wanted = torch.cat([torch.zeros(len(negative)), torch.ones(len(positive))])
    return float(roc_auc_score(wanted, torch.cat([negative, positive])))


def ecdf(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values in order, share of them that is at most each)."""
    ordered = values.sort().values
    return ordered, torch.arange(1, len(values) + 1) / len(values)


def run(
    task: Task, trained: Trained, inliers: Labelled, outliers: tuple[str, Tensor], networks: int, shown: int, out: Path,
    figures: tuple[str, ...], beside: tuple[str, ...] = (),
) -> list[Path]:  # fmt: skip
    """outliers.png, .csv (entropy of each image) and .json; atypical.png: the least sure inliers, the surest outliers.

    beside: folders whose outliers.csv is drawn, too.
    """
    name, others = outliers
    found = {
        "inliers": entropies(task, trained, inliers.images, networks),
        "outliers": entropies(task, trained, others, networks),
    }
    written = []
    if "outliers" in figures:
        rows = [
            {"set": kind, "image": i, "entropy": value}
            for kind, values in found.items()
            for i, value in enumerate(values.tolist())
        ]
        told = {"outliers_name": name, "networks": networks, **summary(found["inliers"], found["outliers"])}
        print(f"{name} told by the entropy of {networks} networks: AUROC {told['auroc']:.4f}")
        written += [
            save_png(draw_ecdfs({"": found, **{one: read(Path(one)) for one in beside}}, name), out / "outliers.png"),
            write_csv(out / "outliers.csv", rows),
            write_json(out / "outliers.json", told),
        ]
    if "atypical" in figures:
        unsure = inliers.images[found["inliers"].argsort(descending=True)[:shown].to(inliers.images.device)]
        sure = others[found["outliers"].argsort()[:shown].to(others.device)]
        rows_of_images = {"least sure": unsure, f"{name}, surest": sure}
        written.append(save_png(draw_images(rows_of_images), out / "atypical.png"))
    return written


def summary(inliers: Tensor, outliers: Tensor) -> dict[str, float | dict[str, float]]:
    """Numbers of two sets of entropies."""
    told: dict[str, float | dict[str, float]] = {"auroc": auroc(inliers, outliers)}
    for name, values in (("inliers", inliers), ("outliers", outliers)):
        told[name] = {
            "mean": values.mean().item(),
            "median": values.median().item(),
            "lowest": values.min().item(),
            f"share_below_{LOW}": (values < LOW).double().mean().item(),
        }
    return told


def read(folder: Path) -> dict[str, Tensor]:
    """The entropies in a folder's outliers.csv. Raises FileNotFoundError where it has none."""
    rows = read_table(folder / "outliers.csv")
    return {
        kind: torch.tensor([float(row["entropy"]) for row in rows if row["set"] == kind])
        for kind in ("inliers", "outliers")
    }


def draw_ecdfs(found: Mapping[str, Mapping[str, Tensor]], outliers: str) -> Figure:
    """Figure 3: outliers solid, inliers dashed, of each evaluation: folder ("" for this one) -> entropies."""
    drawn, axes = figure(5.6, 3.6)
    for at, (folder, sets) in enumerate(found.items()):
        colour, of = (ONE, MANY, "#6b8e23", "#8e44ad")[at % 4], f", {Path(folder).name}" if folder else ""
        for kind, style, label in (("outliers", "-", outliers), ("inliers", "--", "test images")):
            axes.step(*(v.numpy() for v in ecdf(sets[kind])), style, where="post", color=colour, label=label + of)
    axes.set(xlabel="entropy of the mean prediction, nats", ylabel="share of images", ylim=(0, 1.02))
    axes.legend(fontsize=8)
    return drawn


def draw_images(rows: Mapping[str, Tensor]) -> Figure:
    """Images [n,C,H,W] in a row for each name."""
    from matplotlib.figure import Figure

    columns = max(len(images) for images in rows.values())
    drawn = Figure(figsize=(0.7 * columns + 0.4, 0.95 * len(rows)), layout="constrained")
    for line, (name, images) in zip(drawn.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True):
        for axes in line:
            axes.axis("off")
        for axes, image in zip(line, images.cpu(), strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray" if image.shape[0] == 1 else None)
        line[0].set_title(name, fontsize=8, loc="left")
    return drawn
