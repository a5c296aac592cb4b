"""`hyperfast demo`: train, generate, evaluate, compare, report."""

from __future__ import annotations

import time
from pathlib import Path

from ...data import load_digits
from ..training import ProgressBar
from .config import Config
from .evaluate import evaluate
from .report import as_text, summary, write
from .train import train


def run(out: Path, config: Config | None = None) -> Path:
    """Runs the demo into the folder `out`, going on from a checkpoint that lies there. Returns the report's path."""
    config = config or Config()
    data = load_digits()
    path = out / "checkpoint.safetensors"
    begin = time.perf_counter()
    with ProgressBar("training", config.steps, shows="cross-entropy {loss:.3f}, batch accuracy {accuracy:.1%}") as bar:

        def progress(step: int, metrics: dict[str, float]) -> None:
            if step % 20 == 0 or step == config.steps:
                bar.update(step, loss=metrics["cross-entropy"], accuracy=metrics["batch accuracy"])

        net, hypernetwork, steps = train(config, data, path, progress)
    seconds = time.perf_counter() - begin
    if steps < config.steps:
        print(f"stopped after {steps} steps; {path} is usable: the same command goes on from it")
    print(f"generating and evaluating {config.members:,} networks ...", flush=True)
    result = evaluate(net, hypernetwork, data, config.members)
    rows = summary(config, result, steps, seconds)
    report = out / "report.html"
    write(report, config, result, rows)
    print(as_text(rows))
    print(f"\nreport: {report}\ncheckpoint: {path}")
    return report
