"""How predict() gains from ranks: the same ensemble by 1 and by 2 processes of one thread each, in turn.

    python -m hyperfast.benchmarks.ensemble_ranks [--json FILE]

Both process groups live all the time. In each round one works while the other sleeps in a barrier, so that starting
processes is not timed and a busy moment meets both. A time ends when the rank has the answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hyperfast as hf
from hyperfast.experiments.tables import write_json
from hyperfast.models import targets

from .run import environment

RANKS = (1, 2)
MEMBERS, IMAGES = 128, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (folder, options.rounds), sum(RANKS))
        seconds = {n: json.loads(Path(folder, f"{n}.json").read_text()) for n in RANKS}
    alone, together = (seconds[n] for n in RANKS)
    ratios = sorted(a / b for a, b in zip(alone, together, strict=True))
    row = {
        "case": f"ensemble/cnn deutsch {MEMBERS}x{IMAGES}", "ranks": RANKS[1], **environment(torch.device("cpu")),
        "threads": 1, "seconds_alone": statistics.median(alone), "seconds_together": statistics.median(together),
        "speedup": statistics.median(ratios), "speedup_p20": ratios[len(ratios) // 5],
        "efficiency": statistics.median(ratios) / RANKS[1],
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if options.json:
        write_json(options.json, row)


def _work(process: int, folder: str, rounds: int) -> None:
    """Process 0 is the group of one, processes 1 and 2 are the group of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=process, world_size=sum(RANKS))
    groups = {1: dist.new_group([0]), 2: dist.new_group([1, 2])}
    size = 1 if process == 0 else 2
    net = hf.nn.TargetNet(targets.deutsch_mnist())
    theta = net.init(MEMBERS, torch.Generator().manual_seed(0))
    x = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    seconds = []
    for round_ in range(rounds + 1):  # the first warms up
        for turn in RANKS:
            dist.barrier()
            if turn == size:
                begun = time.perf_counter()
                hf.ensemble.predict(net, x, theta, ("mean_prob", "votes", "entropy"), group=groups[size])
                if round_:
                    seconds.append(time.perf_counter() - begun)
    dist.barrier()
    if process in (0, 1):
        Path(folder, f"{size}.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
