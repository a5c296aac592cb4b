"""The public functions. Each checks its input once, chooses a backend and differentiates; none does maths."""

from .coord_grid import eval_grid, render_patches
from .gauge import fix_gauge
from .hyper_lstm import hyper_lstm
from .kde import kde_cross_entropy
from .nn_entropy import nearest_neighbor, nn_entropy
from .target_net import batched_conv2d, batched_linear, batched_mlp
from .tiled_conv import assemble_kernels

__all__ = [
    "assemble_kernels", "batched_conv2d", "batched_linear", "batched_mlp", "eval_grid", "fix_gauge", "hyper_lstm",
    "kde_cross_entropy", "nearest_neighbor", "nn_entropy", "render_patches",
]  # fmt: skip
