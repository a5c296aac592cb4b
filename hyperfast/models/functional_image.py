"""Pictures as functions of continuous coordinates: any scale from one model (Klocek et al., sections 3.1 and 3.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.bicubic import mirrored, resize_bicubic
from ..data.missing import fill_missing
from ..nn import TargetNet
from ..ops import render_patches
from ..ops.checks import check_tensor
from . import targets
from .branched_hypernetwork import BranchedHypernetwork

# Bytes of the generated weights and of the grids of statistics that upscale keeps at once: those of a tile's patches.
_TILE_BYTES = 64 << 20
# First and last, exclusive, of rows or of columns.
Span = tuple[int, int]
# Where a patch has less than this of details, of colours in [0, 1], its residual is in proportion to them no more.
SMALLEST_DETAIL = 0.01


class FunctionalImage(nn.Module):
    """A hypernetwork that makes a coordinate network of every patch of a low-resolution picture.

        theta = H(p)        colour at (y, x) = T(u, v, alpha; theta)                          predicts="picture"
        theta = H(d / s)    colour at (y, x) = bicubic(y, x) + s T(u, v, alpha; theta)        predicts="residual"
                            d = p - mean of p over 3 x 3,   s = root mean square of d

    p is the patch, u and v are the coordinates in it, -1 and 1 at its edges, alpha the scale. What bicubic
    interpolation lacks grows with a patch's contrast and does not depend on its brightness: so does the residual.
    Pictures are covered by overlapping patches, whose networks are averaged with Hann windows. Where pixels are missing,
    a residual's p and bicubic picture are filled by fill_missing first.

    Args:
        channels: C of the pictures: 1 or 3.
        patch: P, side of a patch in low-resolution pixels, even.
        predicts: "picture", as in the paper, or what is to be added to the bicubic picture.
        norm: "none", "per_target" or "shared": PerTargetNorm behind the target's hidden layers.
        missing: whether pixels may be missing: a mask is one more channel of the hypernetwork's input.
        width, branch_width: channels of the hypernetwork's trunk and branches.
        context: low-resolution pixels around a patch, on each side, that the hypernetwork sees, too.

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
        context: int = 0,
    ) -> None:
        super().__init__()
        if patch < 2 or patch % 2:
            raise ValueError(f"patch must be a positive even number; got {patch!r}")
        if predicts not in ("picture", "residual"):
            raise ValueError(f"predicts must be 'picture' or 'residual'; got {predicts!r}")
        if context < 0:
            raise ValueError(f"context must not be negative; got {context!r}")
        residual = predicts == "residual"
        self.channels, self.patch, self.context = channels, patch, context
        self.predicts, self.missing = predicts, missing
        output: Literal["sigmoid", "identity"] = "identity" if residual else "sigmoid"
        self.net = TargetNet(targets.klocek_mlp(3, channels, norm=norm, residual=True, output=output))
        inputs = channels + missing
        side = patch + 2 * context
        # Half a period in two pixels, where a patch has 2 / patch of a unit a pixel; alpha as PyTorch starts it.
        frequencies = (math.pi / 4 * patch, math.pi / 4 * patch, 3**-0.5) if residual else None
        self.hypernetwork = BranchedHypernetwork(
            self.net, inputs, (side, side), width, branch_width, frequencies, details=residual
        )

    def forward(self, patches: Tensor, points: Tensor, scale: Tensor, base: Tensor | None = None) -> Tensor:
        """Colours at points of patches.

        Args:
            patches: [B,C,S,S] in [0,1], S = patch + 2 context; with `missing`, [B,C+1,S,S], the last channel 1 where a
                pixel is known and 0 where it is missing, whose colours are then 0.
            points: [B,N,2], (u, v) in [-1,1], of the patch without its context.
            scale: [B], alpha.
            base: [B,N,C], the bicubic picture there, filled where pixels are missing; needed where predicts is
                "residual".

        Returns:
            [B,N,C], not clipped.
        """
        theta = self.generate(patches)
        alpha = scale.view(-1, 1, 1).expand(*points.shape[:2], 1)
        y = self.net(torch.cat([points, alpha], 2), theta)
        if self.predicts == "picture":
            return y
        if base is None:
            raise ValueError("base must be the bicubic picture at the points, where the model predicts the residual")
        return base + y

    def generate(self, patches: Tensor) -> Tensor:
        """theta [B,num_weights] of patches with their context, as forward takes them."""
        if self.predicts == "picture":
            return self.hypernetwork(patches)
        known = patches[:, self.channels :]  # no channel where none can be missing
        if self.missing:
            patches = fill_missing(patches[:, : self.channels], known)
        details = patches - F.avg_pool2d(F.pad(patches, (1, 1, 1, 1), mode="replicate"), 3, 1)
        size = (details.square().mean((1, 2, 3), keepdim=True) + SMALLEST_DETAIL**2).sqrt()
        # T's last layer is linear: its weights take the factor.
        return self.hypernetwork(torch.cat([details / size, known], 1), size.flatten(1))

    @torch.no_grad()
    def upscale(
        self,
        image: Tensor,
        scale: float | tuple[float, float],
        known: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """A picture of any size at any scale, in tiles, of which each takes bounded memory; as in eval mode.

        Args:
            image: [C,h,w] in [0,1].
            scale: output pixels an input pixel, a positive number or (sy, sx); alpha is its geometric mean.
            known: [1,h,w], 0 where a pixel is missing; for models with `missing`. At scale 1 known pixels stay as they
                are.
            progress: called as progress(done, total) after every tile, in output pixels.

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
        height, width = image.shape[1:]
        size = max(1, round(height * sy)), max(1, round(width * sx))
        ratio = size[0] / height, size[1] / width  # the scale that covers the picture exactly
        training = self.training
        self.eval()
        try:
            if self.missing:
                known = torch.ones_like(image[:1]) if known is None else known.to(image)
                image = image * known
            seen = self._input(image, known)
            out = image.new_empty(self.channels, *size)
            done = 0
            for rows, cols in self._tiles(image, ratio):
                lines, columns = _inside(rows, ratio[0]), _inside(cols, ratio[1])
                count = (lines[1] - lines[0]) * (columns[1] - columns[0])
                if count:
                    tile = self._tile(seen, rows, cols, lines, columns, ratio, math.sqrt(sy * sx))
                    out[:, slice(*lines), slice(*columns)] = tile
                    done += count
                if progress is not None:
                    progress(done, size[0] * size[1])
        finally:
            self.train(training)
        if self.predicts == "residual":
            out += resize_bicubic(image if known is None else fill_missing(image, known), size)
        if known is not None and size == (height, width):
            out = torch.where(known > 0, image, out)
        return out.clamp_(0, 1)

    def _input(self, image: Tensor, known: Tensor | None) -> Tensor:
        """What patches are cut of: the picture with a mirrored margin of a patch and its context, and the mask."""
        if known is not None:
            image = torch.cat([image, known])
        index = [mirrored(side, self.patch + self.context, image.device) for side in image.shape[1:]]
        return image[:, index[0]][:, :, index[1]]

    def _tiles(self, image: Tensor, ratio: tuple[float, float]) -> list[tuple[Span, Span]]:
        """Input rows and columns of each tile: whole strides of patches."""
        stride = self.patch // 2
        each = max(4 * self.net.num_weights, 4 * 256 * math.ceil(self.patch**2 * ratio[0] * ratio[1]) // 64)
        # A tile of k by k strides takes k + 1 by k + 1 patches.
        side = max(1, math.isqrt(_TILE_BYTES // each) - 1) * stride
        rows, cols = ([(k, min(k + side, n)) for k in range(0, n, side)] for n in image.shape[1:])
        return list(itertools.product(rows, cols))

    def _tile(
        self, seen: Tensor, rows: Span, cols: Span, lines: Span, columns: Span, ratio: tuple[float, float], alpha: float
    ) -> Tensor:
        """Output pixels lines x columns [C,H,W], from the patches that cover the input's rows x cols."""
        stride, patch, side = self.patch // 2, self.patch, self.patch + 2 * self.context
        # Every place is in two patches along an axis, also at the edges: the first begins half a patch outside.
        tops, lefts = (torch.arange(first - stride, last, stride) for first, last in (rows, cols))
        corners = torch.cartesian_prod(tops, lefts)
        patches = torch.stack(
            [seen[:, y + patch : y + patch + side, x + patch : x + patch + side] for y, x in corners.tolist()]
        )
        theta = self.generate(patches)
        first = torch.tensor([lines[0] / ratio[0], columns[0] / ratio[1]], dtype=torch.float64)
        origins = corners.to(seen.device, torch.float64) - first.to(seen.device)
        size = lines[1] - lines[0], columns[1] - columns[0]
        return render_patches(theta, self.net, origins, patch, size, ratio, seen.new_tensor([alpha]), check=False)


def _inside(span: Span, ratio: float) -> Span:
    """Output pixels [first, last) that lie in [first, last) of the input: pixel i is at (i + 1/2) / ratio."""
    return math.ceil(span[0] * ratio - 0.5), math.ceil(span[1] * ratio - 0.5)
