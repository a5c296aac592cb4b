"""The papers' hypernetworks."""

from . import targets
from .branched_hypernetwork import BranchedHypernetwork
from .filter_hypernetwork import FilterHypernetwork, NoiseStream, deutsch_hypernetwork
from .masked_flow import MaskedFlow
from .multiplicative_flows import MultiplicativeFlows

__all__ = [
    "BranchedHypernetwork", "FilterHypernetwork", "MaskedFlow", "MultiplicativeFlows", "NoiseStream",
    "deutsch_hypernetwork", "targets",
]  # fmt: skip
