"""The papers' hypernetworks."""

from . import targets
from .branched_hypernetwork import BranchedHypernetwork
from .filter_hypernetwork import FilterHypernetwork, NoiseStream, deutsch_hypernetwork
from .functional_image import FunctionalImage
from .hypergan import HyperGAN
from .masked_flow import MaskedFlow
from .multiplicative_flows import MultiplicativeFlows
from .wide_resnet import WideResNet

__all__ = [
    "BranchedHypernetwork", "FilterHypernetwork", "FunctionalImage", "HyperGAN", "MaskedFlow", "MultiplicativeFlows",
    "NoiseStream", "WideResNet", "deutsch_hypernetwork", "targets",
]  # fmt: skip
