"""The papers' hypernetworks."""

from .filter_hypernetwork import FilterHypernetwork, NoiseStream

__all__ = ["FilterHypernetwork", "NoiseStream"]
