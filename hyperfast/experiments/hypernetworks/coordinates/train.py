"""The experiment of appendix A.1, as a classification."""

from __future__ import annotations

from ..classification import Classification
from .config import NAME, PRESETS
from .figures import draw
from .model import CoordinateMLP

CLASSIFICATION = Classification(
    name=NAME,
    summary="generate a fully connected layer for MNIST from its weights' coordinates (Ha et al., appendix A.1)",
    presets=PRESETS,
    model=CoordinateMLP,
    kernels="filters",
    draw=draw,
)
