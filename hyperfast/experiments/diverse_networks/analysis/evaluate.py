"""`hyperfast evaluate`: every analysis by the name of its figure, for any generator of the target's networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....data import load_mnist
from ... import accuracy, filters
from ...experiment import Trained
from ...figures import save_png
from ...tables import write_json
from . import adversarial, paths, pictures, scatter
from .config import Evaluation
from .filters import slices

FIGURES = ("histogram", "ensembles", "filters", "scatter", "paths", "adversarial", "training")
_OF_ACCURACIES = {"histogram", "ensembles"}


def evaluation(
    load: Callable[[Path, torch.device, int], Trained],
    load_config: Callable[[Path], Any],
    other_column: str,
    other_label: str,
) -> Callable[[Evaluation, Path, Path, Path | None, torch.device, tuple[str, ...]], None]:
    """Experiment.evaluate of a generator. The config has held_out; the other column of metrics.csv is drawn, too."""

    def run(
        settings: Evaluation,
        path: Path,
        out: Path,
        data_root: Path | None,
        device: torch.device,
        figures: tuple[str, ...],
    ) -> None:
        """Measures what the figures named show, and writes it beside them; without names the accuracies alone."""
        trained = load(path, device, settings.seed)
        _, validation, test = load_mnist(data_root).split(load_config(path).held_out)
        sets = {name: data[: settings.images].to(device) for name, data in (("validation", validation), ("test", test))}
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        if not figures or _OF_ACCURACIES & set(figures):
            scores = accuracy.run(trained, sets, settings, out)
            about = {"checkpoint": str(path), "step": trained.step, "settings": asdict(settings)}
            written.append(write_json(out / "evaluation.json", {**about, "rows": accuracy.summary(scores)}))
            for name, found in scores.items():
                if "histogram" in figures:
                    written.append(save_png(pictures.histogram(found, f"{name} images"), out / f"histogram_{name}.png"))
                if "ensembles" in figures and found.vote:
                    written.append(save_png(pictures.ensembles(found), out / f"ensembles_{name}.png"))
        if "filters" in figures:
            written += filters.run(trained, settings.filter_samples, slices, out)
        if "scatter" in figures:
            written += scatter.run(trained, settings, out)
        if "paths" in figures:
            written += paths.run(trained, sets["validation"], settings, out)
        if "adversarial" in figures:
            written += adversarial.run(trained, sets["validation"], settings, out)
        if "training" in figures and (path.parent / "metrics.csv").exists():
            drawn = pictures.training(path.parent, other_column, other_label)
            written.append(save_png(drawn, out / "training.png"))
        print("\n".join(map(str, written)))

    return run
