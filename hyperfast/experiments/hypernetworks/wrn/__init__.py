"""Wide residual networks for CIFAR-10 whose kernels are generated (section 4.2, appendix A.3.2)."""

from .train import CLASSIFICATION

EXPERIMENT = CLASSIFICATION.experiment()
