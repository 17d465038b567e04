"""What takes a GPU thousands of launches when it is written in PyTorch? Census distance and cost volume.

Here each of their passes is one kernel, in which a pixel gathers all that concerns it.

`flowcore.loops`, which visits one offset after the other, is their reference. Tensors here are contiguous and
on one GPU. Triton comes with torch's builds for CUDA: only `flowcore.passes` imports this module, when it has
met a tensor on a GPU.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_PIXELS = 256
_CHANNELS = 8

Grey = Float[Tensor, "batch 1 height width"]
Features = Float[Tensor, "batch channels height width"]
Volume = Float[Tensor, "batch displacements height width"]


def census(grey1: Grey, grey2: Grey, radius: int, soft_sign: float, soft_hamming: float) -> Grey:
    """The soft Hamming distance of `flowcore.photometric.census_distance`."""
    batch, _, height, width = grey1.shape
    distance = torch.empty_like(grey1)
    grid = (triton.cdiv(height * width, _PIXELS), batch)
    _census[grid](grey1, grey2, distance, height, width, soft_sign, soft_hamming, radius, _PIXELS)
    return distance


def census_gradients(
    grey1: Grey,
    grey2: Grey,
    gradient: Grey,
    needed: tuple[bool, bool],
    radius: int,
    soft_sign: float,
    soft_hamming: float,
) -> tuple[Grey | None, Grey | None]:
    """The gradients for both frames, of the distance's; None for a frame that needs none."""
    batch, _, height, width = grey1.shape
    gradient1 = torch.empty_like(grey1) if needed[0] else None
    gradient2 = torch.empty_like(grey2) if needed[1] else None
    grid = (triton.cdiv(height * width, _PIXELS), batch)
    _census_gradients[grid](
        grey1,
        grey2,
        gradient,
        gradient1,
        gradient2,
        height,
        width,
        soft_sign,
        soft_hamming,
        radius,
        _PIXELS,
    )
    return gradient1, gradient2


def cost_volume(features1: Features, features2: Features, radius: int) -> Volume:
    """See `flowcore.networks.correlation.cost_volume`."""
    batch, channels, height, width = features1.shape
    displacements = (2 * radius + 1) ** 2
    volume = features1.new_empty(batch, displacements, height, width)
    grid = (triton.cdiv(height * width, _PIXELS), displacements, batch)
    _cost_volume[grid](features1, features2, volume, height, width, channels, radius, _PIXELS)
    return volume


def cost_volume_gradients(
    features1: Features, features2: Features, gradient: Volume, needed: tuple[bool, bool], radius: int
) -> tuple[Features | None, Features | None]:
    """The gradients for both frames' features, of the volume's; None for a frame that needs none."""
    batch, channels, height, width = features1.shape
    gradient1 = torch.empty_like(features1) if needed[0] else None
    gradient2 = torch.empty_like(features2) if needed[1] else None
    grid = (triton.cdiv(height * width, _PIXELS // 2), triton.cdiv(channels, _CHANNELS), batch)
    _cost_volume_gradients[grid](
        features1,
        features2,
        gradient,
        gradient1,
        gradient2,
        channels,
        height,
        width,
        radius,
        _PIXELS // 2,
        _CHANNELS,
    )
    return gradient1, gradient2


@triton.jit
def _census(
    grey1: tl.tensor,
    grey2: tl.tensor,
    distance: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    soft_sign: tl.tensor,
    soft_hamming: tl.tensor,
    radius: tl.constexpr,
    pixels: tl.constexpr,
) -> None:
    place = tl.program_id(0) * pixels + tl.arange(0, pixels)
    frame = tl.program_id(1).to(tl.int64) * height * width
    y, x = place // width, place % width
    counts = (y >= radius) & (y < height - radius) & (x >= radius) & (x < width - radius)
    centre1 = tl.load(grey1 + frame + place, mask=counts, other=0.0)
    centre2 = tl.load(grey2 + frame + place, mask=counts, other=0.0)
    total = centre1 * 0.0
    side: tl.constexpr = 2 * radius + 1
    # The centre differs from itself by nothing.
    for index in range(side * side):
        there = frame + place + (index // side - radius) * width + index % side - radius
        difference1 = tl.load(grey1 + there, mask=counts, other=0.0) - centre1
        difference2 = tl.load(grey2 + there, mask=counts, other=0.0) - centre2
        sign1 = difference1 * tl.rsqrt(soft_sign + difference1 * difference1)
        sign2 = difference2 * tl.rsqrt(soft_sign + difference2 * difference2)
        mismatch = (sign1 - sign2) * (sign1 - sign2)
        total += mismatch / (soft_hamming + mismatch)
    tl.store(distance + frame + place, total, mask=place < height * width)


@triton.jit
def _census_gradients(
    grey1: tl.tensor,
    grey2: tl.tensor,
    gradient: tl.tensor,
    gradient1: tl.tensor | None,
    gradient2: tl.tensor | None,
    height: tl.tensor,
    width: tl.tensor,
    soft_sign: tl.tensor,
    soft_hamming: tl.tensor,
    radius: tl.constexpr,
    pixels: tl.constexpr,
) -> None:
    place = tl.program_id(0) * pixels + tl.arange(0, pixels)
    frame = tl.program_id(1).to(tl.int64) * height * width
    y, x = place // width, place % width
    exists = place < height * width
    counts = (y >= radius) & (y < height - radius) & (x >= radius) & (x < width - radius)
    centre1 = tl.load(grey1 + frame + place, mask=exists, other=0.0)
    centre2 = tl.load(grey2 + frame + place, mask=exists, other=0.0)
    mine = tl.load(gradient + frame + place, mask=counts, other=0.0)
    total1, total2 = centre1 * 0.0, centre2 * 0.0
    side: tl.constexpr = 2 * radius + 1
    for index in range(side * side):
        down, right = index // side - radius, index % side - radius
        row, column = y + down, x + right
        there = frame + place + down * width + right
        is_inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        its_counts = (row >= radius) & (row < height - radius)
        its_counts &= (column >= radius) & (column < width - radius)
        difference1 = tl.load(grey1 + there, mask=is_inside, other=0.0) - centre1
        difference2 = tl.load(grey2 + there, mask=is_inside, other=0.0) - centre2
        its = tl.load(gradient + there, mask=is_inside & its_counts, other=0.0)
        inverse1 = tl.rsqrt(soft_sign + difference1 * difference1)
        inverse2 = tl.rsqrt(soft_sign + difference2 * difference2)
        mismatch = difference1 * inverse1 - difference2 * inverse2
        base = soft_hamming + mismatch * mismatch
        # Each pixel of a pair is in the other's patch, with the same share of the distance.
        slope = 2 * soft_hamming * soft_sign * mismatch / (base * base) * (mine + its)
        slope = tl.where(is_inside, slope, 0.0)
        # What isn't needed is None, and compiled away.
        if gradient1 is not None:
            total1 -= slope * inverse1 * inverse1 * inverse1
        if gradient2 is not None:
            total2 += slope * inverse2 * inverse2 * inverse2
    if gradient1 is not None:
        tl.store(gradient1 + frame + place, total1, mask=exists)
    if gradient2 is not None:
        tl.store(gradient2 + frame + place, total2, mask=exists)


@triton.jit
def _cost_volume(
    features1: tl.tensor,
    features2: tl.tensor,
    volume: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
    radius: tl.constexpr,
    pixels: tl.constexpr,
) -> None:
    place = tl.program_id(0) * pixels + tl.arange(0, pixels)
    index = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    side: tl.constexpr = 2 * radius + 1
    down, right = index // side - radius, index % side - radius
    row, column = place // width + down, place % width + right
    exists = place < height * width
    is_inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    here = features1 + pair * channels * height * width + place
    there = features2 + pair * channels * height * width + place + down * width + right
    total = tl.load(here, mask=is_inside, other=0.0) * 0.0
    for _ in range(channels):
        total += tl.load(here, mask=is_inside, other=0.0) * tl.load(there, mask=is_inside, other=0.0)
        here += height * width
        there += height * width
    tl.store(volume + (pair * side * side + index) * height * width + place, total, mask=exists)


@triton.jit
def _cost_volume_gradients(
    features1: tl.tensor,
    features2: tl.tensor,
    gradient: tl.tensor,
    gradient1: tl.tensor | None,
    gradient2: tl.tensor | None,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    radius: tl.constexpr,
    pixels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    place = tl.program_id(0) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    pair = tl.program_id(2).to(tl.int64)
    size = height * width
    y, x = place // width, place % width
    exists = (place < size)[None, :] & (channel < channels)[:, None]
    own = (pair * channels + channel[:, None]) * size + place[None, :]
    total1 = tl.load(features1 + own, mask=exists, other=0.0) * 0.0
    total2 = total1
    side: tl.constexpr = 2 * radius + 1
    for index in range(side * side):
        down, right = index // side - radius, index % side - radius
        offset = down * width + right
        weights = gradient + (pair * side * side + index) * size + place
        # What this pixel of the first frame is compared with; what is compared with this one of the second.
        ahead = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        behind = (y - down >= 0) & (y - down < height) & (x - right >= 0) & (x - right < width)
        # What isn't needed is None, and compiled away.
        if gradient1 is not None:
            weight1 = tl.load(weights, mask=ahead & (place < size), other=0.0)
            total1 += weight1[None, :] * tl.load(
                features2 + own + offset, mask=exists & ahead[None, :], other=0.0
            )
        if gradient2 is not None:
            weight2 = tl.load(weights - offset, mask=behind & (place < size), other=0.0)
            total2 += weight2[None, :] * tl.load(
                features1 + own - offset, mask=exists & behind[None, :], other=0.0
            )
    if gradient1 is not None:
        tl.store(gradient1 + own, total1, mask=exists)
    if gradient2 is not None:
        tl.store(gradient2 + own, total2, mask=exists)
