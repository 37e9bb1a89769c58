"""The same picture seen a little differently each time: crops, mirror images, colours.

Plain tensor operations on a whole batch, on the device that trains. All chance comes from
a generator on the CPU, so a run is the same again with the same seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

LEAST_AREA = 0.35  # of a picture that a crop shows
RATIO = 4 / 3  # by which a crop may be wider or higher than the picture
JITTER = 0.3  # brightness, contrast and saturation are multiplied by 1 ± this
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augmented(pixels: Tensor, size: int, chance: Generator, *, flip: bool = True) -> Tensor:
    """uint8 (n, side, side, 3) → float32 (n, size, size, 3), from 0 to 255.

    A random resized crop (Szegedy et al., "Going deeper with convolutions", 2014), mirrored
    half of the time if `flip`, then brightness, contrast and saturation changed.
    """
    batch = _planes(pixels)
    batch = _cropped(batch, size, chance, flip)
    return _recoloured(batch, chance).permute(0, 2, 3, 1)


def plain(pixels: Tensor, size: int) -> Tensor:
    """The whole pictures: uint8 (n, side, side, 3) → float32 (n, size, size, 3)."""
    from torch.nn.functional import interpolate

    small = interpolate(
        _planes(pixels), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return small.permute(0, 2, 3, 1)


def _planes(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


def _cropped(batch: Tensor, size: int, chance: Generator, flip: bool) -> Tensor:
    """Every picture's own crop, resized to size × size: all in one resampling."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    count = len(batch)
    area = _between(LEAST_AREA, 1, count, chance)
    ratio = _between(-math.log(RATIO), math.log(RATIO), count, chance).exp()
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    # In the coordinates of affine_grid a picture reaches from -1 to 1.
    x = _between(-1, 1, count, chance) * (1 - width)
    y = _between(-1, 1, count, chance) * (1 - height)
    if flip:
        width = torch.where(torch.rand(count, generator=chance) < 0.5, -width, width)
    zero = torch.zeros(count)
    rows = [torch.stack([width, zero, x], -1), torch.stack([zero, height, y], -1)]
    maps = torch.stack(rows, 1).to(batch.device)
    grid = affine_grid(maps, [count, 3, size, size], align_corners=False)
    return grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def _recoloured(batch: Tensor, chance: Generator) -> Tensor:
    """Brightness, contrast and saturation of every picture multiplied by a factor."""
    factors = _between(1 - JITTER, 1 + JITTER, 3 * len(batch), chance)
    light, contrast, colour = factors.to(batch.device).view(3, -1, 1, 1, 1)
    batch = batch * light
    mean = _grey(batch).mean((1, 2, 3), keepdim=True)
    batch = mean + (batch - mean) * contrast
    grey = _grey(batch)
    return (grey + (batch - grey) * colour).clamp(0, 255)


def _grey(batch: Tensor) -> Tensor:
    red, green, blue = batch.split(1, 1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _between(low: float, high: float, count: int, chance: Generator) -> torch.Tensor:
    import torch

    return low + (high - low) * torch.rand(count, generator=chance)
