"""The public functions. Each checks its input once, chooses a backend and differentiates; none does maths."""

from .gauge import fix_gauge
from .hyper_lstm import hyper_lstm
from .kde import kde_cross_entropy
from .nn_entropy import nearest_neighbor, nn_entropy
from .target_net import batched_conv2d, batched_linear, batched_mlp
from .tiled_conv import assemble_kernels

__all__ = [
    "assemble_kernels", "batched_conv2d", "batched_linear", "batched_mlp", "fix_gauge", "hyper_lstm", "kde_cross_entropy",
    "nearest_neighbor", "nn_entropy",
]  # fmt: skip
