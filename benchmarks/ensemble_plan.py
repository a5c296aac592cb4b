"""What an ensemble costs past one machine: arithmetic from rates of single devices and links.

    python -m hyperfast.benchmarks.ensemble_plan

M networks on N inputs over G devices, as hf.ensemble.predict(group=...) does it: every rank reads all inputs, generates
its M / G networks again for each batch of inputs, evaluates them, and one all-reduce adds up the sums. Times of a rank:

    evaluate  M/G * N * flops_per_evaluation / rate
    generate  M/G * N/batch * flops_per_network / generator_rate
    inputs    G * N * bytes_per_input / storage, shared by all; at least N * bytes_per_input / host_link
    reduce    2 (G-1)/G * N * C * 16 bytes / network_link, and 2 log2(G) * latency
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Machine:
    """Rates of one device and of what joins devices, in FLOP/s, bytes/s and seconds."""

    name: str
    rate: float
    """Of generated networks' evaluation, dense-equivalent."""
    generator_rate: float
    """Of the hypernetwork's products."""
    host_link: float
    """Of one device's inputs."""
    storage: float
    """Of the storage that all ranks read."""
    link: float
    """Of the all-reduce, for one device; the slowest on its way."""
    latency: float


@dataclass(frozen=True)
class Job:
    """The Deutsch target (20,018 weights) from its hypernetwork, on MNIST-sized inputs in float32."""

    networks: float = 1e6
    inputs: float = 1e6
    classes: int = 10
    batch: float = 1e4
    flops_per_evaluation: float = 6.28e6
    """net.plan.flops_per_row of the target."""
    flops_per_network: float = 5.65e6
    """2 (436,500 + 32 * 3,240 + 16 * 91,600 + 8 * 90,000 + 10 * 9,900): every filter is a pass of its sub-network."""
    bytes_per_input: float = 4 * 784
    input_shards: int = 1
    """Parts of the inputs: a mesh of G / input_shards ranks of members by so many of inputs."""


# Measured: benchmarks/results/amd-epyc.json, "cnn deutsch 64x256" at 800f5491b1 (251 GFLOP/s); the generator as large
# products at the rate measured beside it. A local disk and 10 Gbit/s Ethernet are assumed.
CPU = Machine("2 threads of an AMD EPYC", 251e9, 180e9, 2e9, 2e9, 1.2e9, 50e-6)
# Not measured: half of the bf16 rate of an H200 (790 TFLOP/s), the aim for ensembles; storage of 100 GB/s for the
# cluster, 25 GB/s a GPU between machines are assumed.
GPU = Machine("H200, not measured", 395e12, 395e12, 50e9, 100e9, 25e9, 20e-6)


def seconds(machine: Machine, job: Job, devices: int) -> dict[str, float]:
    """Of every part, for the rank that takes longest."""
    shards = min(job.input_shards, devices)
    ranks, inputs = devices // shards, job.inputs / shards
    own = math.ceil(job.networks / ranks)
    size = inputs * job.bytes_per_input
    sums = inputs * job.classes * 16  # probabilities in float64 and votes in int64
    return {
        "evaluate": own * inputs * job.flops_per_evaluation / machine.rate,
        "generate": own * math.ceil(inputs / job.batch) * job.flops_per_network / machine.generator_rate,
        "inputs": max(devices * size / machine.storage, size / machine.host_link),
        "reduce": 2 * (ranks - 1) / ranks * sums / machine.link + 2 * math.ceil(math.log2(ranks)) * machine.latency,
    }


def table(machine: Machine, job: Job, devices: tuple[int, ...] = (1, 8, 64, 512)) -> str:
    """Markdown: a row for each number of devices."""
    alone = sum(seconds(machine, job, 1).values())
    lines = ["| devices | evaluate | generate | inputs | reduce | together | efficiency |", "|" + " --- |" * 7]
    for count in devices:
        parts = seconds(machine, job, count)
        total = sum(parts.values())
        cells = [f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s" for value in (*parts.values(), total)]
        lines.append(f"| {count} | " + " | ".join(cells) + f" | {alone / total / count:.0%} |")
    return "\n".join(lines) + "\n"


def report() -> str:
    """The tables of docs/scaling.md."""
    job = Job()
    cases = (
        ("", GPU, job),
        ("", CPU, job),
        (", batches of 100 inputs", GPU, replace(job, batch=100)),
        (", inputs as bytes", GPU, replace(job, bytes_per_input=784)),
        (", inputs in 8 shards", GPU, replace(job, input_shards=8)),
    )
    return "\n".join(f"**{machine.name}{words}**\n\n{table(machine, job)}" for words, machine, job in cases)


if __name__ == "__main__":
    print(report(), end="")
