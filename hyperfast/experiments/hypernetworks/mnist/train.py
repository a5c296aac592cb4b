"""The experiment of section 4.1 and appendix A.3.1, as a classification."""

from __future__ import annotations

from ..classification import Classification
from .config import NAME, PRESETS
from .figures import draw
from .model import ConvNet

CLASSIFICATION = Classification(
    name=NAME,
    summary="generate a convolution's kernel for MNIST from four numbers (Ha et al., section 4.1)",
    presets=PRESETS,
    model=ConvNet,
    kernels="kernels",
    draw=draw,
)
