"""report.html, self-contained, and the same figures as a table."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import MANY, ONE, accuracy_by_size, accuracy_histogram
from ..figures import figure as new_figure
from .config import Config
from .evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%}h2{margin-top:2.5rem}"
)


def summary(config: Config, result: Evaluation, steps: int, train_seconds: float) -> list[tuple[str, str]]:
    """(what, figure) rows."""
    members = result.member_accuracy
    ours = result.seconds["hyperfast"]
    below = (members.double() < result.ensemble_accuracy).double().mean().item()
    rows = [
        ("training", f"{steps} steps in {train_seconds:.0f} s"),
        ("networks generated", f"{len(members):,}"),
        ("held-out digits", f"{result.inputs}"),
        ("one network, mean accuracy", f"{members.double().mean():.2%} (lowest {members.min():.2%}, highest {members.max():.2%})"),
        (f"ensemble of {len(members):,}, mean probability", f"{result.ensemble_accuracy:.2%}, better than {below:.0%} of its members"),
        (f"ensemble of {len(members):,}, majority vote", f"{result.vote_accuracy:.2%}"),
        ("disagreement of the members", f"{result.disagreement:.3f} nats"),
        ("ensemble, hyperfast", f"{ours * 1e3:.1f} ms"),
    ]  # fmt: skip
    rows += [
        (f"ensemble, {name}", f"{seconds * 1e3:.1f} ms: hyperfast is {seconds / ours:.1f}x faster")
        for name, seconds in result.seconds.items()
        if name != "hyperfast"
    ]
    rows.append(("largest difference to PyTorch", f"{result.largest_difference:.1e} in a probability"))
    return rows


def as_text(rows: list[tuple[str, str]]) -> str:
    """The summary as aligned lines."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what.ljust(width)}  {figure}" for what, figure in rows)


def write(path: Path, config: Config, result: Evaluation, rows: list[tuple[str, str]]) -> None:
    """Writes the page, its pictures inside it."""
    cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    sections = [
        ("Alone and together", accuracy_histogram(result.member_accuracy, result.ensemble_accuracy), "Accuracy of every generated network on held-out digits, and of all of them as one ensemble (line)."),
        ("How many networks", accuracy_by_size(result.by_size), "Ensemble accuracy against its size: mean and range over up to 20 disjoint ensembles."),
        ("Generated filters", _filters(result), "First-layer weights of the same 12 hidden units (columns) in four generated networks (rows)."),
        ("Speed", _speed(result), "Time to evaluate the whole ensemble, measured in turns in this run."),
    ]  # fmt: skip
    body = "".join(
        f"<h2>{title}</h2><p>{caption}</p><img alt='{title}' src='data:image/png;base64,{_png(figure)}'>"
        for title, figure, caption in sections
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>hyperfast demo</title><style>{_STYLE}</style>"
        f"<h1>A thousand generated networks</h1><p>A hypernetwork learned to generate 64-{config.hidden}-10 networks that "
        f"read handwritten digits. Each figure was measured in this run.</p><table>{cells}</table>{body}</html>\n"
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def _filters(result: Evaluation) -> Figure:
    from matplotlib.figure import Figure

    networks, shown = result.filters.shape[0], min(12, result.filters.shape[1])
    figure = Figure(figsize=(7.0, 0.62 * networks), layout="constrained")
    limit = result.filters.abs().max().item()
    for axes, image in zip(figure.subplots(networks, shown).flat, result.filters[:, :shown].flatten(0, 1), strict=True):
        axes.imshow(image.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
        axes.axis("off")
    return figure


def _speed(result: Evaluation) -> Figure:
    figure, axes = new_figure(height=2.0)
    names = list(result.seconds)
    times = [1e3 * result.seconds[name] for name in names]
    bars = axes.barh(names, times, color=[ONE] + [MANY] * (len(names) - 1))
    axes.bar_label(bars, [f" {t:.1f} ms" for t in times])
    axes.set(xlabel=f"ms for {len(result.member_accuracy):,} networks on {result.inputs} images")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    return figure
