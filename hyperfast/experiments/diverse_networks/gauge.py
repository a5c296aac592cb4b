"""Gauge and entropy of flat weights: where the experiments here take both from."""

from ...reference.gauge import fix_gauge
from ...reference.nn_entropy import nn_entropy

__all__ = ["fix_gauge", "nn_entropy"]
