"""Drop-in modules: TargetNet, and the layers for its templates that torch.nn does not have."""

from .hyper_lstm import HyperLSTM, HyperLSTMCell, HyperLSTMState, LayerNormLSTM
from .hyper_lstm_rnn import HyperRNN, HyperRNNState
from .layers import Cos, PerTargetNorm, Residual, Sin
from .target_net import TargetNet
from .tiled_conv import HyperConv2d, TileHypernetwork

__all__ = [
    "Cos", "HyperConv2d", "HyperLSTM", "HyperLSTMCell", "HyperLSTMState", "HyperRNN", "HyperRNNState", "LayerNormLSTM", "PerTargetNorm", "Residual", "Sin", "TargetNet",
    "TileHypernetwork",
]  # fmt: skip
