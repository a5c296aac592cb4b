"""Klocek et al.: images and shapes as functions, whose networks a hypernetwork generates."""
