"""A convolutional network for MNIST whose second kernel is generated (section 4.1, appendix A.3.1)."""

from .train import CLASSIFICATION

EXPERIMENT = CLASSIFICATION.experiment()
