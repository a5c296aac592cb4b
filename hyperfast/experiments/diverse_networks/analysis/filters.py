"""The filters that Deutsch's figures 3 and 5 show."""

from __future__ import annotations

from torch import Tensor

from ....nn import TargetNet


def slices(net: TargetNet, theta: Tensor) -> dict[str, Tensor]:
    """name -> [M,rows,columns]: two first-layer filters, a channel of a second-layer one and of a third-layer one."""
    weights = net.unflatten(theta)
    first, second, third = (weights[name] for name, shape, _ in net.layout[:6] if len(shape) > 1)
    channels, side = second.shape[1], round((third.shape[2] / second.shape[1]) ** 0.5)
    return {
        "layer 1, filter 1": first[:, 0, 0],
        "layer 1, filter 2": first[:, 1, 0],
        "layer 2, filter 1": second[:, 0, 0],
        "layer 3, filter 1": third.unflatten(2, (channels, side, side))[:, 0, 0],
    }
