"""Generated weights along their principal components (Deutsch, figures 6 and 9 to 20): is it more than a Gaussian?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....nn import TargetNet
from ...experiment import Trained
from ...figures import MANY, ONE, save_png
from ...tables import write_csv, write_json
from ...training import ProgressBar
from .config import Evaluation

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 64  # networks generated


@torch.no_grad()
def run(trained: Trained, settings: Evaluation, out: Path) -> list[Path]:
    """For each of parts(): scatter_PART.png and .csv; scatter.json with the variance of each component."""
    of = parts(trained.net)
    theta = torch.empty(settings.scatter_networks, trained.net.num_weights)
    written, found = [], {}
    with ProgressBar("scatter", len(theta) + len(of)) as bar:
        for start in range(0, len(theta), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(theta))
            theta[start:stop] = trained.sampler(torch.arange(start, stop))
            bar.update(stop)
        for done, (name, columns) in enumerate(of.items(), 1):
            points, found[name] = components(theta[:, columns], settings.scatter_components, settings.seed)
            labels = [f"component_{i}" for i in range(1, points.shape[1] + 1)]
            table = [dict(zip(labels, map(float, point), strict=True)) for point in points]
            written += [_draw(points, out / f"scatter_{name}.png"), write_csv(out / f"scatter_{name}.csv", table)]
            bar.update(len(theta) + done)
    return [*written, write_json(out / "scatter.json", found)]


def parts(net: TargetNet) -> dict[str, Tensor]:
    """name -> columns of theta: the first filter (weights and bias) of every layer but the last, layers, the network."""
    found: dict[str, Tensor] = {}
    columns, layout = torch.arange(net.num_weights), net.layout
    layers = list(zip(layout[::2], layout[1::2], strict=True))
    for number, ((_, shape, weight), (_, _, bias)) in enumerate(layers, 1):
        if number < len(layers):
            first = columns[weight].reshape(shape[0], -1)[0]
            found[f"layer{number}_filter1"] = torch.cat([first, columns[bias][:1]])
        found[f"layer{number}"] = torch.cat([columns[weight], columns[bias]])
    return found | {"network": columns}


def components(weights: Tensor, count: int, seed: int) -> tuple[np.ndarray, dict[str, list[float] | float]]:
    """weights [M,D], centred -> [M,count] along the principal components, and their variances and shares.

    kurtosis: E[v^4] / E[v^2]^2 - 3 of each, 0 for a Gaussian.
    """
    from sklearn.decomposition import PCA

    count = min(count, *weights.shape)
    few = weights.shape[1] <= 1_000
    pca = PCA(count, svd_solver="covariance_eigh" if few else "randomized", random_state=seed)
    points = pca.fit_transform(weights.double().numpy() if few else weights.numpy())
    scaled = points / points.std(0).clip(1e-300)
    return points, {
        "variance": pca.explained_variance_.tolist(),
        "share": pca.explained_variance_ratio_.tolist(),
        "kurtosis": ((scaled**4).mean(0) - 3).tolist(),
    }


def _draw(points: np.ndarray, path: Path) -> Path:
    """(i, j): component i against component j; on the diagonal component i's histogram."""
    from matplotlib.figure import Figure

    count = points.shape[1]
    picture = Figure(figsize=(1.5 * count, 1.5 * count), layout="constrained")
    for i, line in enumerate(picture.subplots(count, count, squeeze=False)):
        for j, axes in enumerate(line):
            if i == j:
                axes.hist(points[:, i], bins=40, color=MANY)
            else:
                axes.plot(points[:, j], points[:, i], ",", color=ONE, alpha=0.6)
            axes.set(xticks=[], yticks=[])
            if i == count - 1:
                axes.set_xlabel(f"{j + 1}")
            if j == 0:
                axes.set_ylabel(f"{i + 1}")
    save_png(picture, path)
    return path
