"""Tokens of (sensor, date, patch): patches of any size, computed positions, which to hide, and how to pool them."""

from dataclasses import dataclass
from functools import lru_cache
from math import log, pi

import numpy as np
import torch
from torch import nn

SENSORS = ("s1", "s2")
# Sums of digital numbers below this are noise, a quotient by them more so.
DARKEST = 100.0
SPREAD_FLOOR = 1e-4


@lru_cache(maxsize=64)
def resample_matrices(base: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that bring a base x base grid to size x size pixels, and projection weights along with it.

    Args:
        base: side of the base grid.
        size: side of the patch.

    Returns:
        `B` float32 (size², base²), area means where it shrinks, linear where it grows; and `R` float32 (size², base²),
        the pseudo-inverse of B's transpose: <x, w> = <B x, R w> for any patch x that B keeps (FlexiViT, arXiv
        2212.08013, eq. 6; area means instead of bilinear ones, so that a constant patch gives the same token at every
        size).
    """
    one = np.zeros((size, base))
    if size <= base:
        edges = np.arange(size + 1) * base / size
        for row in range(size):
            cells = np.arange(base)
            one[row] = np.clip(np.minimum(edges[row + 1], cells + 1) - np.maximum(edges[row], cells), 0, None)
        one /= base / size
    else:
        centre = np.clip((np.arange(size) + 0.5) * base / size - 0.5, 0, base - 1)
        low = np.minimum(centre.astype(int), base - 2) if base > 1 else np.zeros(size, int)
        one[np.arange(size), low] = 1 - (centre - low)
        if base > 1:
            one[np.arange(size), low + 1] = centre - low
    inverse = np.linalg.pinv(one.T)
    return np.kron(one, one).astype(np.float32), np.kron(inverse, inverse).astype(np.float32)


def sincos(values: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """`values` (...,) and `frequencies` (n,) in radians a unit -> (..., 2 n): sines, then cosines."""
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _geometric(low: float, high: float, n: int, device: torch.device) -> torch.Tensor:
    """n frequencies in radians a unit, of wavelengths from `low` to `high`."""
    steps = torch.linspace(0, 1, n, device=device)
    return 2 * pi / (low * torch.exp(steps * log(high / low)))


def positions(days: torch.Tensor, gsd: torch.Tensor, grid: tuple[int, int], patch_size: int, dim: int, config):
    """Computed position of each token: nothing learned, so that any size and any date works.

    An eighth of `dim` each: sines and cosines of x and y (two eighths each), of the day of the year on a circle (two),
    of the time since 1 January of the first year, and of the logarithm of the patch's side.

    Args:
        days: (B, T), days since 1 January of the sample's first year.
        gsd: (B,), metres a pixel.
        grid: rows and columns of patches.
        patch_size: pixels a patch.
        dim: divisible by 16.

    Returns:
        float32 (B, T, rows, columns, dim).
    """
    (rows, cols), (batch, dates), device = grid, days.shape, days.device
    side = gsd.float() * patch_size
    wave = _geometric(config.min_wavelength_m, config.max_wavelength_m, dim // 8, device)
    y = sincos((torch.arange(rows, device=device) + 0.5) * side[:, None], wave)  # (B, rows, dim / 4)
    x = sincos((torch.arange(cols, device=device) + 0.5) * side[:, None], wave)  # (B, cols, dim / 4)
    years = days.float() / 365.25
    season = sincos(years, 2 * pi * torch.arange(1, dim // 8 + 1, device=device))  # (B, T, dim / 4)
    elapsed = sincos(years, _geometric(0.5, 16.0, dim // 16, device))  # (B, T, dim / 8)
    extent = sincos(torch.log2(side), _geometric(2.0, 32.0, dim // 16, device))  # (B, dim / 8)
    full = (batch, dates, rows, cols, -1)
    return torch.cat(
        [
            y[:, None, :, None].expand(full),
            x[:, None, None, :].expand(full),
            torch.cat([season, elapsed], dim=-1)[:, :, None, None].expand(full),
            extent[:, None, None, None].expand(full),
        ],
        dim=-1,
    )


def to_patches(values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, T, C, H, W) with sides divisible by `patch_size` -> (B, T, rows, columns, C, patch_size²)."""
    b, t, c, h, w = values.shape
    p = patch_size
    values = values.reshape(b, t, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6)
    return values.reshape(b, t, h // p, w // p, c, p * p)


def from_patches(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of `to_patches`."""
    b, t, rows, cols, c, _ = patches.shape
    p = patch_size
    patches = patches.reshape(b, t, rows, cols, c, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    return patches.reshape(b, t, c, rows * p, cols * p)


@dataclass
class SensorInput:
    """One sensor of a batch, its sides padded to whole patches.

    values float (B, T, C, H, W), 0 where there is no measurement or the band is hidden; days (B, T); valid bool
    (B, T, H, W); bands bool (B, T, C), which exist; level (B,) or None; hidden bool (B, T, C), bands hidden on purpose.
    """

    values: torch.Tensor
    days: torch.Tensor
    valid: torch.Tensor
    bands: torch.Tensor
    level: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @property
    def measured(self) -> torch.Tensor:
        """bool (B, T, C, H, W): there is a measurement."""
        return self.valid[:, :, None] & self.bands[..., None, None]

    def grid(self, patch_size: int) -> tuple[int, int]:
        return self.values.shape[-2] // patch_size, self.values.shape[-1] // patch_size

    def present(self, patch_size: int) -> torch.Tensor:
        """bool (B, tokens): patches with at least one valid pixel."""
        return to_patches(self.valid[:, :, None], patch_size).any(dim=(-1, -2)).flatten(1)


def gather_tokens(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(B, N, D), (B, K) -> (B, K, D)."""
    return values.gather(1, ids[..., None].expand(-1, -1, values.shape[-1]))


def pool_sensors(
    tokens: torch.Tensor, token_mask: torch.Tensor, sensor: torch.Tensor, spread: bool = False
) -> torch.Tensor:
    """(B, N, D), bool (B, N), (B, N) -> (B, D): sixty radar dates do not drown five optical ones.

    With `spread` -> (B, 2 D): the mean of each sensor's tokens and then their standard deviation, 0 for one token.
    Weights of at least 0 may stand for `token_mask`: only their ratios within a sensor count.
    """
    total = count = 0
    for number in range(len(SENSORS)):
        weight = token_mask.to(tokens.dtype) * (sensor == number)
        n = weight.sum(dim=1, keepdim=True)
        whole = n.masked_fill(n == 0, 1)
        pooled = (weight[:, None] @ tokens).squeeze(1) / whole
        if spread:
            square = (tokens - pooled[:, None]) ** 2
            variance = (weight[:, None] @ square).squeeze(1) / whole
            # The slope of a root at 0 has no end; this one is 0 at 0 and smooth.
            pooled = torch.cat([pooled, (variance + SPREAD_FLOOR).sqrt() - SPREAD_FLOOR**0.5], dim=1)
        total = total + pooled * (n > 0)
        count = count + (n > 0).to(tokens.dtype)
    return total / count.clamp(min=1)


def normalised_differences(
    values: torch.Tensor, measured: torch.Tensor, pairs: list[tuple[int, int]], mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a - b) / (a + b) of digital numbers, -1 to 1, times two: about as wide as a standardised band.

    Args:
        values: (B, T, C, H, W), standardised. measured: bool, the same shape. mean, std: (C,), of the digital numbers.
        pairs: channels (a, b) of each of K indices.

    Returns:
        (B, T, K, H, W), 0 where one of the two bands is not measured; bool, where both are.
    """
    a, b = ([pair[k] for pair in pairs] for k in range(2))
    numbers = values * std[:, None, None] + mean[:, None, None]
    first, second = numbers[:, :, a], numbers[:, :, b]
    both = measured[:, :, a] & measured[:, :, b]
    index = ((first - second) / (first + second).clamp(min=DARKEST)).clamp(-1, 1)
    return (2 * index).masked_fill(~both, 0), both


def summarise(values: torch.Tensor, measured: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, twice the standard deviation, least and largest value of each channel over dates and pixels.

    Args:
        values: (B, T, C, H, W). measured: bool, the same shape.

    Returns:
        (B, 4 C), 0 where a channel has no measurement; bool (B, 4 C), where it has some.
    """
    values, measured = (x.transpose(1, 2).flatten(2) for x in (values.float(), measured))  # (B, C, T H W)
    n, there = torch.count_nonzero(measured, dim=-1).clamp(min=1), measured.any(dim=-1)
    mean = (values * measured).sum(dim=-1) / n
    spread = (((values - mean[..., None]) ** 2 * measured).sum(dim=-1) / n).sqrt()
    low = values.masked_fill(~measured, float("inf")).amin(dim=-1)
    high = values.masked_fill(~measured, float("-inf")).amax(dim=-1)
    out = torch.cat([part.masked_fill(~there, 0) for part in (mean, 2 * spread, low, high)], dim=1)
    return out, there.repeat(1, 4)


def contrast(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE both ways (arXiv 1807.03748) of (n, D) and (n, D), whose rows belong together; 0 for fewer than two."""
    one, other = (nn.functional.normalize(x.float(), dim=1) for x in (one, other))
    scores, own = one @ other.T / temperature, torch.arange(len(one), device=one.device)
    if len(one) < 2:
        return scores.sum() * 0
    return (nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)) / 2


def select_visible(
    noise: torch.Tensor, present: torch.Tensor, mask_ratio: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the tokens that stay visible: in each sample clamp(round(n (1 - mask_ratio)), 1, n - 1) of its n tokens.

    Args:
        noise: (B, N), the lowest scores stay. present: bool (B, N).

    Returns:
        order (B, N), visible tokens first, then hidden, then absent ones; bool (B, K), which of its first K are
        visible; mask (B, N) in the original order, 1 for hidden tokens.
    """
    counts = present.sum(dim=1)
    keep = (counts * (1 - mask_ratio)).round().long()
    keep = keep.clamp(min=1).minimum((counts - 1).clamp(min=1))
    order = noise.masked_fill(~present, float("inf")).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    visible = torch.arange(int(keep.max()), device=noise.device) < keep[:, None]
    return order, visible, (present & (rank >= keep[:, None])).to(noise.dtype)


def draw_noise(
    index: torch.Tensor, batch: int, weights: list[float], generator: torch.Generator | None = None
) -> torch.Tensor:
    """Scores (B, N) that hide single tokens, a whole sensor first, whole dates, or the same places through all dates.

    Args:
        index: (N, 4), sensor, date, row and column of each token.
        weights: how often each of the four kinds is drawn, by sample.
    """
    device = index.device
    sensor, date, row, col = index.unbind(-1)
    place = row * (col.max() + 1) + col
    day = sensor * (date.max() + 1) + date
    scores = torch.rand(batch, len(index), generator=generator, device=device)
    kind = torch.multinomial(
        torch.tensor(weights, dtype=torch.float, device=device), batch, replacement=True, generator=generator
    )
    for number, group in ((1, sensor), (2, day), (3, place)):
        draws = torch.rand(batch, int(group.max()) + 1, generator=generator, device=device)
        grouped = draws[:, group] + 1e-4 * scores
        scores = torch.where((kind == number)[:, None], grouped, scores)
    return scores


def draw_hidden_bands(
    x: SensorInput, always: torch.Tensor, prob: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Bands to hide from visible tokens -> bool (B, T, C): in half the samples alike on all dates, else date by date.

    At least one band of each date stays. Where `always` (B,) is True at least one is hidden if there are two.
    """
    b, t, c = x.bands.shape

    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=x.bands.device)

    apply, rate, alike = (rand(b) < prob) | always, 0.1 + 0.6 * rand(b), rand(b) < 0.5
    noise = torch.where(alike[:, None, None], rand(b, 1, c).expand(b, t, c), rand(b, t, c))
    noise = noise.masked_fill(~x.bands, float("nan"))
    low = noise.nan_to_num(2).amin(dim=-1, keepdim=True)
    high = noise.nan_to_num(-1).amax(dim=-1, keepdim=True)
    hide = (noise < rate[:, None, None]) | (always[:, None, None] & (noise == low))
    return hide & (noise < high) & apply[:, None, None]


def smooth_radar(x: SensorInput) -> torch.Tensor:
    """Radar without most of its speckle: mean of 3 x 3 valid pixels, or of three dates where there is one pixel."""
    b, t, c, h, w = x.values.shape
    valid = x.measured.to(x.values.dtype)
    values = x.values.masked_fill(~x.measured, 0)
    if h * w > 1:

        def pool(y):
            return nn.functional.avg_pool2d(y.flatten(0, 1), 3, 1, 1, divisor_override=1).unflatten(0, (b, t))
    else:

        def pool(y):
            y = y.reshape(b, t, c).transpose(1, 2)
            return (nn.functional.avg_pool1d(y, 3, 1, 1) * 3).transpose(1, 2).reshape(b, t, c, 1, 1)

    return pool(values) / pool(valid).clamp(min=1)


__all__ = [
    "SENSORS",
    "SensorInput",
    "contrast",
    "draw_hidden_bands",
    "draw_noise",
    "from_patches",
    "gather_tokens",
    "normalised_differences",
    "pool_sensors",
    "positions",
    "resample_matrices",
    "select_visible",
    "sincos",
    "smooth_radar",
    "summarise",
    "to_patches",
]
