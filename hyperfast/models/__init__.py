"""The papers' hypernetworks."""

from . import targets
from .filter_hypernetwork import FilterHypernetwork, NoiseStream, deutsch_hypernetwork
from .masked_flow import MaskedFlow
from .multiplicative_flows import MultiplicativeFlows

__all__ = ["FilterHypernetwork", "MaskedFlow", "MultiplicativeFlows", "NoiseStream", "deutsch_hypernetwork", "targets"]
