"""Reconstructions of test faces, and how far the paths between them lead from real ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....data.faces import Faces
from ...tables import write_csv, write_json
from ...training import ProgressBar
from . import paths
from .config import Evaluation
from .figures import Drawn, draw
from .model import FaceFunctions, in_unit
from .train import errors, load, psnr, read, reconstructed


def reconstruction(model: FaceFunctions, faces: Faces, settings: Evaluation) -> dict[str, Any]:
    """Means over the test pictures; beside them those of the mean training picture in place of every one."""
    test = faces.test[: settings.pictures]
    ours = errors(reconstructed(model, test), test)
    mean = (faces.train.double().mean(0) / 255).float()
    plain = errors(mean.expand(len(test), -1, -1, -1), test)
    return {
        "pictures": len(test), "mse": ours.mean().item(), "psnr": psnr(ours).mean().item(),
        "psnr_worst": psnr(ours).min().item(), "mean_picture_mse": plain.mean().item(),
        "mean_picture_psnr": psnr(plain).mean().item(),
        "mean_picture_distance": paths.nearest(mean.unsqueeze(0), faces.train)[0].item(),
    }  # fmt: skip


@torch.no_grad()
def shown(
    model: FaceFunctions, faces: Faces, settings: Evaluation, every: paths.Paths, measured: paths.Measured
) -> Drawn:
    """What the figures show: the first test pictures, the first paths, and the first pair layer by layer."""
    device = next(model.parameters()).device
    originals = in_unit(faces.test[: settings.shown], device)
    theta = model.hypernetwork(originals)
    return Drawn(
        originals.cpu(), model.render(theta).cpu(), model.render(theta, settings.enlarged).cpu(),
        every[: settings.drawn], paths.by_layers(model, faces.test[:2], settings.between), measured,
    )  # fmt: skip


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate functional_images/faces`: evaluation.json, distances.csv, paths.csv, figures."""
    model, config, step = load(path, device)
    faces = read(config, data_root)
    ends = paths.pairs_of(faces.test, settings)
    scores = reconstruction(model, faces, settings)
    every = paths.between(model, ends, settings.between)
    with ProgressBar("distances", len(paths.KINDS)) as bar:
        measured = paths.measure(every, faces.train, device, lambda done: bar.update(done))
    table = paths.summary(measured)
    write_csv(out / "distances.csv", paths.rows(measured, settings.between))
    write_csv(out / "paths.csv", table)
    write_json(out / "evaluation.json", {
        "checkpoint": str(path), "step": step, "data": faces.title, "training_pictures": len(faces.train),
        "settings": asdict(settings), "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()), "weights": model.net.num_weights,
        **scores, "pairs": len(ends) // 2, "paths": table,
    })  # fmt: skip
    print(
        f"step {step}, {faces.title}: PSNR {scores['psnr']:.2f} dB over {scores['pictures']} test pictures; the mean "
        f"training picture in place of each {scores['mean_picture_psnr']:.2f} dB"
    )
    _print(table, len(ends) // 2, scores["mean_picture_distance"])
    if figures:
        print("\n".join(map(str, draw(figures, shown(model, faces, settings, every, measured), path.parent, out))))


def _print(table: list[dict[str, Any]], pairs: int, mean_picture: float) -> None:
    from rich.console import Console
    from rich.table import Table

    shown_columns = {
        "path": "path of", "distance_ends": "ends", "distance_middle": "middle", "distance_path": "between",
        "detail_middle": "detail", "nearer": "nearer",
    }  # fmt: skip
    printed = Table(title=f"RMS distance to the nearest training picture, {pairs} pairs")
    for heading in shown_columns.values():
        printed.add_column(heading)
    for row in table:
        percent = ("detail_middle", "nearer")
        printed.add_row(*(
            row[name] if name == "path" else f"{row[name]:.0%}" if name in percent else f"{row[name]:.4f}"
            for name in shown_columns
        ))  # fmt: skip
    Console().print(printed)
    print(
        f"The mean training picture's distance is {mean_picture:.4f}: blurred pictures are near to many.\n"
        "detail: of the middle, beside that of the ends. nearer: pairs whose middle is nearer than that of the weights."
    )
