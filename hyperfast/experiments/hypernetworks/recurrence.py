"""The recurrences that the experiments compare, and how a HyperLSTM's weights move while it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ...nn import HyperLSTM, HyperRNN, LayerNormLSTM
from ...reference.hyper_lstm import Scales
from ..settings import LoopConfig, check_at_least


@dataclass(frozen=True, kw_only=True)
class RecurrenceConfig(LoopConfig):
    """The settings of a recurrence; an experiment's config derives from it and gives the paper's defaults."""

    cell: Literal["lstm", "layer_norm_lstm", "hyper_lstm", "hyper_rnn"] = "hyper_lstm"
    """The recurrence."""
    units: int
    """Units of the main cell."""
    layer_norm: bool
    """Whether a HyperLSTM is layer-normalised."""
    recurrent_dropout: float
    """Probability of dropping a unit of tanh g, in both cells of a HyperLSTM."""
    output_dropout: float
    """Probability of dropping a unit of the last layer's output, and between layers."""
    layers: int = 1
    """Recurrent layers."""
    hyper_units: int = 128
    """Units of the hyper cell."""
    embedding: int = 4
    """Elements of an embedding: the signal size."""
    init: Literal["paper", "asymmetric"] = "paper"
    """Of a HyperLSTM's embeddings."""
    forget_bias: float = 1.0
    """Added to the forget gates: the author's code has 1, the paper says nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, units=1, layers=1, hyper_units=1, embedding=1)


def recurrence(config: RecurrenceConfig, inputs: int) -> nn.Module:
    """config.cell over that many inputs."""
    common: dict[str, Any] = {
        "num_layers": config.layers, "dropout": config.output_dropout, "recurrent_dropout": config.recurrent_dropout,
        "forget_bias": config.forget_bias,
    }  # fmt: skip
    if config.cell == "hyper_rnn":
        return HyperRNN(inputs, config.units, config.hyper_units, config.embedding)
    if config.cell == "hyper_lstm":
        return HyperLSTM(
            inputs, config.units, config.hyper_units, config.embedding, layer_norm=config.layer_norm,
            hyper_recurrent_dropout=config.recurrent_dropout, init=config.init, **common,
        )  # fmt: skip
    return LayerNormLSTM(inputs, config.units, layer_norm=config.cell == "layer_norm_lstm", **common)


def weight_changes(scales: Scales) -> Tensor:
    """[4,T-1]: for each gate (i, f, g, o) the norm of the change of d_h from one step to the next.

    scales: of a HyperLSTM's forward; taken of its last layer and of the batch's first sequence.
    """
    d_h = scales.d_h[-1, :, 0]
    return (d_h[1:] - d_h[:-1]).norm(dim=2).T
