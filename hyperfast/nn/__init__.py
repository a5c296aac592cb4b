"""Drop-in modules: TargetNet, and the layers for its templates that torch.nn does not have."""

from torch.utils._pytree import _register_namedtuple

from ..reference.hyper_lstm import LSTMState as _LSTMState
from ..reference.hyper_lstm import Scales as _Scales
from .hyper_lstm import HyperLSTM, HyperLSTMCell, HyperLSTMState, LayerNormLSTM
from .hyper_lstm_rnn import HyperRNN, HyperRNNState
from .layers import Cos, PerTargetNorm, Residual, Sin
from .target_net import TargetNet
from .tiled_conv import HyperConv2d, TileHypernetwork

__all__ = [
    "Cos", "HyperConv2d", "HyperLSTM", "HyperLSTMCell", "HyperLSTMState", "HyperRNN", "HyperRNNState", "LayerNormLSTM", "PerTargetNorm", "Residual", "Sin", "TargetNet",
    "TileHypernetwork",
]  # fmt: skip

# torch.export.save writes only programs whose named tuples have a name of their own.
for _returned in (HyperLSTMState, HyperRNNState, _LSTMState, _Scales):
    _register_namedtuple(_returned, serialized_type_name=f"hyperfast.{_returned.__name__}")
