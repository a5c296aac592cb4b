"""The recurrences that the experiments compare, and how a HyperLSTM's weights move while it reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...nn import HyperLSTM, HyperRNN, LayerNormLSTM
from ...reference.hyper_lstm import Scales


def recurrence(config: Any, inputs: int) -> nn.Module:
    """config.cell over that many inputs.

    config has units, layers, layer_norm (of a HyperLSTM), hyper_units, embedding, init, forget_bias, recurrent_dropout
    (of both cells) and output_dropout (between layers).
    """
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
