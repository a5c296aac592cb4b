"""`hyperfast evaluate hypergan/...`: every analysis of the classifiers by the name of its figure."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ...data import Labelled
from ...nn import TargetNet
from .. import accuracy, filters
from ..experiment import Trained
from ..figures import accuracy_by_size, save_png
from ..tables import write_json
from . import attacks, norms, outliers
from .config import Evaluation
from .figures import training
from .task import Task
from .train import load, load_config

FIGURES = ("ensembles", "norms", "outliers", "atypical", "transfer", "attacks", "filters", "training")


def figures_of(task: Task) -> tuple[str, ...]:
    """Those that the experiment has data for."""
    return FIGURES if task.outliers else tuple(name for name in FIGURES if name not in ("outliers", "atypical"))


def run(
    task: Task,
    settings: Evaluation,
    path: Path,
    out: Path,
    data_root: Path | None,
    device: torch.device,
    figures: tuple[str, ...],
) -> None:
    """Measures what the figures named show, and writes it beside them; without names the accuracies alone."""
    trained, config = load(task, path, device, settings.seed), load_config(task, path)
    settings = within(settings, trained)
    parts = task.read(config, data_root)
    validation, test = (part[: settings.images].to(device) for part in (parts.validation, parts.test))
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if not figures or "ensembles" in figures:
        seen = {
            name: Labelled(task.inputs(p.images), p.labels) for name, p in (("validation", validation), ("test", test))
        }
        larger = tuple(size for size in settings.ensemble_sizes if size > 1)  # a network alone is told anyway
        scores = accuracy.run(trained, seen, replace(settings, ensemble_sizes=larger), out)
        about = {"checkpoint": str(path), "step": trained.step, "method": config.method, "settings": asdict(settings)}
        about |= {"images": parts.title, "rows": accuracy.summary(scores)}
        written.append(write_json(out / "evaluation.json", about))
        if "ensembles" in figures and scores["test"].mean_prob:
            by_size = {n: (sum(a) / len(a), min(a), max(a)) for n, a in scores["test"].mean_prob.items()}
            written.append(save_png(accuracy_by_size(by_size), out / "ensembles.png"))
    if "norms" in figures:
        written += norms.run(trained, settings.norm_networks, out)
    if {"outliers", "atypical"} & set(figures):
        assert task.outliers is not None
        name, others = task.outliers(config.images, task.everything(config, data_root), data_root)
        others = others[: settings.images].to(device)
        written += outliers.run(
            task,
            trained,
            test,
            (name, others),
            settings.outlier_networks,
            settings.atypical,
            out,
            figures,
            settings.beside,
        )
    attacked, clean = test[: settings.attack_images], test[settings.attack_images :][: settings.clean_images]
    if {"transfer", "attacks"} & set(figures) and len(clean) < 2:
        raise ValueError(
            f"config.evaluation.attack_images must leave two clean test images of {len(test)}; got {settings.attack_images}"
        )
    if "transfer" in figures and trained.members != 1:
        written += attacks.transfer(task, trained, attacked, clean.images, settings, out)
    if "attacks" in figures:
        written += attacks.ensembles(task, trained, attacked, clean.images, settings, out)
    if "filters" in figures:
        written += filters.run(trained, settings.filter_samples, slices, out)
    if "training" in figures and (path.parent / "metrics.csv").exists():
        written.append(save_png(training(path.parent), out / "training.png"))
    print("\n".join(map(str, written)))


def within(settings: Evaluation, trained: Trained) -> Evaluation:
    """The settings with no more networks than the checkpoint has."""
    if trained.members is None:
        return settings
    names = ("networks", "norm_networks", "outlier_networks", "filter_samples")
    return replace(settings, **{name: min(getattr(settings, name), trained.members) for name in names})


def slices(net: TargetNet, theta: Tensor) -> dict[str, Tensor]:
    """name -> [M,rows,columns]: of each convolution what its first two filters do with its first input (figure 6)."""
    convolutions = [weight for weight in net.unflatten(theta).values() if weight.dim() == 5]
    return {
        f"layer {layer}, filter {filter_ + 1}": weight[:, filter_, 0]
        for layer, weight in enumerate(convolutions, 1)
        for filter_ in range(2)
    }
