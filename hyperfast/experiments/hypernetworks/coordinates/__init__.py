"""A fully connected network for MNIST whose first layer a network of coordinates generates (appendix A.1)."""

from .train import CLASSIFICATION

EXPERIMENT = CLASSIFICATION.experiment()
