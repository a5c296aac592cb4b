"""Neural networks whose weights are generated: fused kernels behind drop-in PyTorch layers."""

from importlib.metadata import version as _version

from . import ensemble, models, nn, ops
from .backends import HyperfastFallbackWarning, backend
from .doctor import doctor

__version__ = _version("hyperfast")

__all__ = ["HyperfastFallbackWarning", "__version__", "backend", "doctor", "ensemble", "models", "nn", "ops"]
