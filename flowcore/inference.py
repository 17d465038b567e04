"""What is the flow between frames of any size, at full resolution?

A frame that is too large for the network is cut into tiles that overlap, and their flows are blended. A tile
knows nothing of what is outside it: motion by more than the overlap is lost at its borders.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowcore.geometry import Window, resize_image, upsample_flow, upsample_values
from flowcore.networks import FlowNetwork
from flowcore.networks.interface import no_scale
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import merged
from flowcore.refinement import refined
from flowcore.shapes import Flow, Frame, to_images

_STEP_PIXELS = {"cpu": 200_000, "cuda": 4_000_000}
"""Pixels of the pairs that go through a network at once. On a CPU the light PWC-Net took 530 ms and 0.7 GB
for a pair of 384x640 px alone, 744 ms each and 2.3 GB for sixteen at once; at 96x128 px sixteen were
fastest."""
_TILE_PIXELS = {"cpu": 2_100_000, "cuda": 4_200_000}
"""Of a frame that isn't cut."""
_OVERLAP = 128
"""Pixels that neighbouring tiles share, at most half a tile."""


def pairs_at_once(height: int, width: int, device: torch.device) -> int:
    """How many pairs of frames of this size go through a network together."""
    return max(1, _STEP_PIXELS[device.type] // (height * width))


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How the network is run, and how its flow is refined."""

    scale: tuple[float, ...] = (1.0,)
    """Resize frames by this factor before the network sees them, and the flow back. Lower it for speed and
    for faster motion; raise it for finer detail. Of several, such as 1.5 1 0.5, each vector is that of the
    first one whose flow agrees there and back, else of the last: fine detail and fast motion both, for the
    time of all, there and back."""
    tile_pixels: int | None = None
    """Cut frames of more pixels (after scaling) into tiles, which keeps memory small and loses fast motion at
    their borders. `none` takes 2,100,000 on a CPU and 4,200,000 on a GPU. Lower it if memory runs out."""
    iterations: int | None = None
    """How often RAFT refines the flow; `none` means as often as in its training. Two to three times as often
    takes as much longer and may be more accurate."""
    refinement: int = 0
    """Iterations of OpenCV's variational refinement of the network's flow, on a CPU; 0 for none. Take 20 for
    finer detail where both frames show the same. It doesn't change what the network expects to be off, and
    takes 130 MiB a megapixel, whatever the tiles."""

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations {self.iterations} must be at least 1")
        if self.refinement < 0:
            raise ValueError(f"refinement {self.refinement} must be 0 iterations or more")
        is_tuple = isinstance(self.scale, tuple)
        if not is_tuple or not self.scale or not all(0.1 <= each <= 4.0 for each in self.scale):
            raise ValueError(f"scale {self.scale} must be one or several numbers in [0.1, 4], as a tuple")
        if self.tile_pixels is not None and self.tile_pixels < 128 * 128:
            raise ValueError(f"tile_pixels {self.tile_pixels} must be at least 16384, a tile of 128x128 px")

    def apply(self, network: FlowNetwork) -> None:
        """Makes the network refine its flow as often as is asked; ValueError of one that has no
        iterations."""
        if self.iterations is not None:
            network.set_iterations(self.iterations)

    def ready(self, network: FlowNetwork, device: torch.device) -> FlowNetwork:
        """The network, set up on the device for `estimate_frames` with these options. Raises as `apply`."""
        self.apply(network)
        return network.ready(device)


@torch.no_grad()
def estimate_frames(
    network: FlowNetwork,
    frames: Sequence[Frame],
    device: torch.device,
    options: InferenceOptions,
    *,
    both: bool,
) -> Iterator[tuple[Flow, Flow | None]]:
    """The flow of the pairs of consecutive frames, some pairs after the other: forward, and backward if
    `both`.

    network: as `options.ready` gives it, on this device. On a GPU the flow may still be computed when it is
    given.
    """
    # Scales are compared by the flow back.
    found = partial(_flows, both=both or len(options.scale) > 1)
    for forward, *backward in _estimates(found, network, frames, device, options, both=both):
        yield forward, backward[0] if both else None


@torch.no_grad()
def estimate_scaled(
    network: FlowNetwork,
    frames: Sequence[Frame],
    device: torch.device,
    options: InferenceOptions,
    *,
    both: bool,
) -> Iterator[tuple[Flow, Flow | None, Float[Tensor, "batch 1 height width"]]]:
    """As `estimate_frames`, and by how many pixels the network expects the forward flow to be off; that takes
    as long as the flow back. ValueError of a network that doesn't predict it."""
    found = _flows_and_scale
    for forward, backward, scale in _estimates(found, network, frames, device, options, both=both):
        yield forward, backward if both else None, scale[:, :1]


_Found = Callable[[FlowNetwork, Float[Tensor, "frames 3 height width"]], Sequence[Tensor]]
"""What is asked of a network for frames: values of two channels in pixels, as flow has them, first the
flow there, then the flow back."""


def _estimates(
    found: _Found,
    network: FlowNetwork,
    frames: Sequence[Frame],
    device: torch.device,
    options: InferenceOptions,
    *,
    both: bool,
) -> Iterator[list[Tensor]]:
    """both: whether the flow back is wanted, which some networks give in any case."""
    height, width = frames[0].shape[:2]
    most = options.tile_pixels or _TILE_PIXELS[device.type]
    sizes = [(max(1, round(height * each)), max(1, round(width * each))) for each in options.scale]
    tiles = {size: tiles_of(*size, most, network.multiple) for size in sizes}
    # Of frames that are cut, and of several scales' flow, little fits into the memory.
    step = 1 if len(sizes) > 1 or len(tiles[sizes[0]]) > 1 else len(frames) - 1
    if device.type == "cpu":
        # It gains nothing by more, and whoever waits sees it go on.
        step = min(step, pairs_at_once(*sizes[0], device))
    for first in range(0, len(frames) - 1, step):
        images = to_images(np.stack(frames[first : first + step + 1]), device)
        at_scales = [
            [
                _resized(flow, height, width)
                for flow in in_tiles(partial(found, network), resize_image(images, *size), tiles[size])
            ]
            for size in sizes
        ]
        values = at_scales[0] if len(at_scales) == 1 else _first_that_agrees(at_scales)
        if options.refinement:
            begin, end = frames[first : first + step], frames[first + 1 : first + step + 1]
            values[0] = refined(values[0], begin, end, options.refinement)
            if both:
                values[1] = refined(values[1], end, begin, options.refinement)
        yield values


def _first_that_agrees(at_scales: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Of what was found at several scales, each vector of the first one whose flow agrees there and back, of
    the last one where none does; what the network expects to be off is that of the same scale.

    Source: ours; as `pseudolabels.merged` takes the flow of several teachers.
    """
    flows = [torch.cat([*found[:2]]) for found in at_scales]
    # Of the flow there, which is all that is wanted, its first channel, as `estimate_scaled` gives it.
    scales = [torch.cat([found[2][:, :1]] * 2) for found in at_scales if len(found) > 2]
    height, width = flows[0].shape[-2:]
    label = merged(flows, 1, height, width, OcclusionCheck(), "first", scales)
    values = list(label.flow.chunk(2))
    if label.uncertainty is not None:
        values.append(label.uncertainty.chunk(2)[0].expand(-1, 2, -1, -1))
    return values


def tiles_of(height: int, width: int, most_pixels: int, multiple: int) -> list[Window]:
    """The fewest tiles of one size that cover a frame, overlap, and have about so many pixels at most; sides
    are multiples of `multiple` where the frame is larger than that."""
    rows = columns = 1
    while math.prod(sides := (_side(height, rows, multiple), _side(width, columns, multiple))) > most_pixels:
        # The longer side is cut next, so that tiles are about square.
        if sides[0] >= sides[1] and sides[0] > 2 * multiple:
            rows += 1
        elif sides[1] > 2 * multiple:
            columns += 1
        else:
            break
    return [
        Window(top=top, left=left, height=sides[0], width=sides[1])
        for top, left in product(_starts(height, sides[0], rows), _starts(width, sides[1], columns))
    ]


def in_tiles(
    estimate: Callable[[Tensor], Sequence[Flow]],
    images: Float[Tensor, "frames 3 height width"],
    tiles: Sequence[Window],
) -> list[Flow]:
    """What `estimate` finds in each tile of the frames, blended where tiles overlap: each counts less towards
    its borders."""
    if len(tiles) == 1:
        return list(estimate(images))
    totals: list[Tensor] = []
    weights = images.new_zeros(images.shape[-2:])
    for tile in tiles:
        part = estimate(images[..., *tile.place])
        weight = _weight(tile.height, images)[:, None] * _weight(tile.width, images)
        weights[tile.place] += weight
        totals = totals or [flow.new_zeros(*flow.shape[:-2], *images.shape[-2:]) for flow in part]
        for total, flow in zip(totals, part, strict=True):
            total[..., *tile.place] += weight * flow
    return [total.div_(weights) for total in totals]


def _flows_and_scale(network: FlowNetwork, images: Float[Tensor, "frames 3 height width"]) -> list[Flow]:
    """The flow there and back, and the forward flow's scale as the length of u and of v."""
    height, width = images.shape[-2:]
    both = network.estimate_both(images, pairs_at_once(height, width, images.device))
    if both.log_scale_fw is None:
        raise ValueError(no_scale(type(network).__name__))
    stride = both.strides[0]
    flows = [upsample_flow(each[0], stride, height, width) for each in (both.forward, both.backward)]
    scale = upsample_values(both.log_scale_fw.float(), stride, height, width).exp()
    return [*flows, scale.expand(-1, 2, -1, -1)]


def _flows(network: FlowNetwork, images: Float[Tensor, "frames 3 height width"], *, both: bool) -> list[Flow]:
    height, width = images.shape[-2:]
    at_once = pairs_at_once(height, width, images.device)
    flows = network.estimate_chunk(images, at_once) if both else [network.estimate_forward(images, at_once)]
    return [upsample_flow(flow, network.strides[0], height, width) for flow in flows]


def _resized(
    flow: Float[Tensor, "batch 2 _ _"], height: int, width: int
) -> Float[Tensor, "batch 2 {height} {width}"]:
    before = flow.shape[-2:]
    if before == (height, width):
        return flow
    longer = flow.new_tensor([width / before[1], height / before[0]]).view(1, 2, 1, 1)
    return resize_image(flow, height, width) * longer


def _side(length: int, count: int, multiple: int) -> int:
    """Pixels of each of so many tiles along a side."""
    if count == 1:
        return length
    overlap = min(_OVERLAP, length // (count + 1))
    side = -(-(length + (count - 1) * overlap) // count)
    return min(length, -(-side // multiple) * multiple)


def _starts(length: int, side: int, count: int) -> list[int]:
    return [round(number * (length - side) / max(1, count - 1)) for number in range(count)]


def _weight(side: int, like: Tensor) -> Float[Tensor, "{side}"]:
    """1 inside, falling to the borders over the pixels that tiles share."""
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    return ((torch.minimum(place, side - 1 - place) + 1) / _OVERLAP).clamp(max=1.0)
