"""Pictures as functions of continuous coordinates: any scale from one model (Klocek et al., sections 3.1 and 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.bicubic import mirrored, resize_bicubic
from ..nn import TargetNet
from ..ops import render_patches
from ..ops.checks import check_tensor
from . import targets
from .branched_hypernetwork import BranchedHypernetwork

# Bytes of the generated weights and of the grids of statistics that upscale keeps at once: rows of patches of a band.
_BAND_BYTES = 64 << 20


class FunctionalImage(nn.Module):
    """A hypernetwork that makes a coordinate network of every patch of a low-resolution picture.

        theta = H(patch),   colour at (y, x) = T(u, v, alpha; theta)                    predicts="picture"
                            colour at (y, x) = bicubic(y, x) + T(u, v, alpha; theta)    predicts="residual"

    u and v are the coordinates in the patch, -1 and 1 at its edges, alpha the scale. Pictures are covered by
    overlapping patches, whose networks are averaged with Hann windows.

    Args:
        channels: C of the pictures: 1 or 3.
        patch: P, side of a patch in low-resolution pixels, even.
        predicts: "picture", as in the paper, or what is to be added to the bicubic picture.
        norm: "none", "per_target" or "shared": PerTargetNorm behind the target's hidden layers.
        missing: whether pixels may be missing: a mask is one more channel of the hypernetwork's input.
        width, branch_width: channels of the hypernetwork's trunk and branches.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        channels: int = 3,
        patch: int = 16,
        predicts: Literal["picture", "residual"] = "picture",
        norm: Literal["none", "per_target", "shared"] = "none",
        missing: bool = False,
        width: int = 12,
        branch_width: int = 128,
    ) -> None:
        super().__init__()
        if patch < 2 or patch % 2:
            raise ValueError(f"patch must be a positive even number; got {patch!r}")
        if predicts not in ("picture", "residual"):
            raise ValueError(f"predicts must be 'picture' or 'residual'; got {predicts!r}")
        self.channels, self.patch, self.predicts, self.missing = channels, patch, predicts, missing
        output: Literal["sigmoid", "identity"] = "sigmoid" if predicts == "picture" else "identity"
        self.net = TargetNet(targets.klocek_mlp(3, channels, norm=norm, residual=True, output=output))
        inputs = channels + missing
        self.hypernetwork = BranchedHypernetwork(self.net, inputs, (patch, patch), width, branch_width)

    def forward(self, patches: Tensor, points: Tensor, scale: Tensor, base: Tensor | None = None) -> Tensor:
        """Colours at points of patches.

        Args:
            patches: [B,C,P,P] in [0,1]; with `missing`, [B,C+1,P,P], the last channel 1 where a pixel is known and 0
                where it is missing, whose colours are then 0.
            points: [B,N,2], (u, v) in [-1,1].
            scale: [B], alpha.
            base: [B,N,C], the bicubic picture there; needed where predicts is "residual".

        Returns:
            [B,N,C], not clipped.
        """
        theta = self.hypernetwork(patches)
        alpha = scale.view(-1, 1, 1).expand(*points.shape[:2], 1)
        y = self.net(torch.cat([points, alpha], 2), theta)
        if self.predicts == "picture":
            return y
        if base is None:
            raise ValueError("base must be the bicubic picture at the points, where the model predicts the residual")
        return base + y

    @torch.no_grad()
    def upscale(
        self,
        image: Tensor,
        scale: float | tuple[float, float],
        known: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """A picture of any size at any scale, in bands of bounded memory; evaluates as in eval mode.

        Args:
            image: [C,h,w] in [0,1].
            scale: output pixels an input pixel, a positive number or (sy, sx); alpha is its geometric mean.
            known: [1,h,w], 0 where a pixel is missing; for models with `missing`.
            progress: called as progress(done, total) after every band, in output rows.

        Returns:
            [C, round(h sy), round(w sx)], clipped to [0,1].
        """
        check_tensor("image", image, (3,), "[C,h,w]")
        if image.shape[0] != self.channels or min(image.shape[1:]) < 1:
            raise ValueError(f"image must be [{self.channels},h,w] of at least one pixel; got {tuple(image.shape)}")
        sy, sx = scale if isinstance(scale, tuple) else (scale, scale)
        if not (0 < sy < math.inf and 0 < sx < math.inf):
            raise ValueError(f"scale must be positive; got {scale!r}")
        if (known is not None) and not self.missing:
            raise ValueError("known is for models that were made with missing=True")
        rows, cols = image.shape[1:]
        size = max(1, round(rows * sy)), max(1, round(cols * sx))
        ratio = size[0] / rows, size[1] / cols  # the scale that covers the picture exactly
        training = self.training
        self.eval()
        try:
            seen = self._input(image, known)
            out = image.new_empty(self.channels, *size)
            done = 0
            for first, last in self._bands(rows, cols, ratio):
                # Output row i lies at (i + 1/2) / ratio.
                stop = size[0] if last == rows else math.ceil(last * ratio[0] - 0.5)
                if stop > done:
                    out[:, done:stop] = self._band(seen, (done, stop), first, last, size[1], ratio, math.sqrt(sy * sx))
                    done = stop
                if progress is not None:
                    progress(done, size[0])
        finally:
            self.train(training)
        if self.predicts == "residual":
            out += resize_bicubic(image, size)
        return out.clamp_(0, 1)

    def _input(self, image: Tensor, known: Tensor | None) -> Tensor:
        """What patches are cut of: the picture with a mirrored margin of a patch, and the mask."""
        if self.missing:
            known = torch.ones_like(image[:1]) if known is None else known.to(image)
            image = torch.cat([image * known, known])
        index = [mirrored(side, self.patch, image.device) for side in image.shape[1:]]
        return image[:, index[0]][:, :, index[1]]

    def _bands(self, rows: int, cols: int, ratio: tuple[float, float]) -> list[tuple[int, int]]:
        """Input rows [first, last) of each band: whole strides of patches."""
        stride = self.patch // 2
        across = -(-cols // stride) + 1
        each = max(4 * self.net.num_weights, 4 * 256 * math.ceil(self.patch**2 * ratio[0] * ratio[1]) // 64)
        strides = max(1, _BAND_BYTES // (across * each) - 1)
        return [(first, min(rows, first + strides * stride)) for first in range(0, rows, strides * stride)]

    def _band(
        self, seen: Tensor, lines: tuple[int, int], first: int, last: int, width: int, ratio: tuple[float, float], alpha: float
    ) -> Tensor:  # fmt: skip
        """Output rows lines[0] to lines[1] [C,rows,W], from the patches that cover input rows first to last."""
        stride, patch = self.patch // 2, self.patch
        cols = seen.shape[2] - 2 * patch
        # Every place is in two patches along an axis, also at the edges: the first begins half a patch outside.
        tops = torch.arange(first - stride, last, stride)
        lefts = torch.arange(-stride, cols, stride)
        corners = torch.cartesian_prod(tops, lefts)
        patches = torch.stack(
            [seen[:, y + patch : y + 2 * patch, x + patch : x + 2 * patch] for y, x in corners.tolist()]
        )
        theta = self.hypernetwork(patches)
        origins = corners.to(seen.device, torch.float64) - torch.tensor([lines[0] / ratio[0], 0.0], dtype=torch.float64)
        extra = seen.new_tensor([alpha])
        return render_patches(theta, self.net, origins, patch, (lines[1] - lines[0], width), ratio, extra, check=False)
