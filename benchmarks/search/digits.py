"""Distorted scikit-learn digits, 32 x 32: an endless training set of the same kind as the validation data in ../shared/data/tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

SIZE = 32


@dataclass(frozen=True)
class Distortion:
    """How far a digit may be bent; every value is the half width of a uniform draw, or the middle and half width of one.

    Attributes:
        angle: Radians.
        shear: Horizontal shift per unit of height.
        size: Middle and half width of the zoom, drawn per axis.
        shift: In half widths of the picture.
        wave: Half width of the smooth random displacement, in half widths of the picture.
        contrast: Middle and half width of the brightest pixel.
        noise: Middle and half width of the standard deviation of the pixel noise.
    """

    angle: float = 0.25
    shear: float = 0.2
    size: tuple[float, float] = (1.02, 0.2)
    shift: float = 0.16
    wave: float = 0.06
    contrast: tuple[float, float] = (0.8, 0.2)
    noise: tuple[float, float] = (0.18, 0.04)


def source() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 1,797 digits as float32 (n, 1, 8, 8) in 0..1, and their int64 labels."""
    digits = load_digits()
    pictures = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    return pictures, torch.from_numpy(digits.target).long()


def distorted(pictures: torch.Tensor, generator: torch.Generator, how: Distortion | None = None) -> torch.Tensor:
    """Return float32 (n, 1, 32, 32) in 0..1: each picture turned, sheared, zoomed, shifted, bent, dimmed and made noisy."""
    how = how or Distortion()
    count = len(pictures)

    def draw(width: float, *shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * width

    angle, shear = draw(how.angle), draw(how.shear)
    zoom = 1 / (how.size[0] + draw(how.size[1], 2))
    turn = torch.stack([torch.cos(angle), -torch.sin(angle) + shear, torch.sin(angle), torch.cos(angle)], 1)
    matrix = turn.reshape(count, 2, 2) * zoom[:, None, :]
    grid = functional.affine_grid(
        torch.cat([matrix, draw(how.shift, 2, 1)], 2), [count, 1, SIZE, SIZE], align_corners=False
    )
    wave = functional.interpolate(draw(how.wave, 2, 5, 5), size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    # The source is enlarged first: bilinear sampling of 8 x 8 pixels would leave visible squares.
    large = functional.interpolate(pictures, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    bent = functional.grid_sample(large, grid + wave.permute(0, 2, 3, 1), align_corners=False)
    bright = bent * (how.contrast[0] + draw(how.contrast[1], 1, 1, 1))
    noise = torch.randn(bent.shape, generator=generator) * (how.noise[0] + draw(how.noise[1], 1, 1, 1))
    return (bright + noise).clamp(0, 1)
