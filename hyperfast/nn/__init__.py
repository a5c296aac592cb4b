"""Drop-in modules: TargetNet, and the layers for its templates that torch.nn does not have."""

from .hyper_lstm import HyperLSTM, HyperLSTMCell, HyperLSTMState, LayerNormLSTM
from .hyper_lstm_rnn import HyperRNN, HyperRNNState
from .layers import Cos, PerTargetNorm, Residual, Sin
from .target_net import TargetNet

__all__ = [
    "Cos", "HyperLSTM", "HyperLSTMCell", "HyperLSTMState", "HyperRNN", "HyperRNNState", "LayerNormLSTM", "PerTargetNorm", "Residual", "Sin", "TargetNet",
]  # fmt: skip
