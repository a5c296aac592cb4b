"""Drop-in modules: TargetNet, and the layers for its templates that torch.nn does not have."""

from .layers import Cos, PerTargetNorm, Residual, Sin
from .target_net import TargetNet

__all__ = ["Cos", "PerTargetNorm", "Residual", "Sin", "TargetNet"]
