"""The papers' hypernetworks."""

from . import targets
from .filter_hypernetwork import FilterHypernetwork, NoiseStream, deutsch_hypernetwork

__all__ = ["FilterHypernetwork", "NoiseStream", "deutsch_hypernetwork", "targets"]
