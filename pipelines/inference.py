"""What is the flow of a video, pair by pair, as it is decoded?

Unlike labelling, prediction leaves nothing out: static pairs and pairs across a cut have a flow too. Each
frame is decoded once, and memory holds a few frames however long the video is. On a GPU some pairs are
computed while those before them are copied and written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from flowcore.frame_codec import FrameCodec
from flowcore.inference import InferenceOptions, estimate_frames, estimate_scaled
from flowcore.networks import FlowNetwork
from flowcore.shapes import FlowArray, Frame
from flowcore.video import EVERY_PAIR, ClipOptions, VideoError
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.decoding_answers import EncodedChunk

_AS_IT_IS = FrameCodec("raw")
_CHUNK_PAIRS = {"cpu": 8, "cuda": 16}


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenPair:
    """Two frames of a video between which there is a flow."""

    index: int
    """The number of the first frame in the video."""
    image1: Frame
    image2: Frame
    timestamp: float
    """Of the first frame, in seconds; nan if unknown."""
    seconds: float
    """From the first frame to the second; nan if unknown."""
    share: float
    """Of the video, or of the pairs wanted, up to this pair, as far as that is known, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimatedPair(SeenPair):
    """A pair with its flow at the frames' own size, in pixels."""

    flow_fw: FlowArray
    flow_bw: FlowArray | None
    """None where it wasn't asked for."""
    scale_fw: Float[ndarray, "height width"] | None = None
    """Pixels by which the network expects `flow_fw` to be off; None where it wasn't asked for."""


class VideoFlow:
    """A network, ready to estimate the flow of videos."""

    def __init__(
        self, network: FlowNetwork, options: InferenceOptions, *, both: bool, scaled: bool = False
    ) -> None:
        """both: the flow back, too. scaled: and how far the network expects to be off; that takes as long
        as the flow back. ValueError for options that the network doesn't have."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = options.ready(network, self._device)
        self._options = options
        self._both = both
        self._scaled = scaled

    def pairs(
        self, decoder: DecoderProcess, source: VideoSource, *, stride: int = 1, most: int | None = None
    ) -> Iterator[EstimatedPair]:
        """The flow from each frame to the next, or to the one so many frames later; of so many pairs at most.
        VideoError for whatever keeps the video from being read, after the pairs before."""
        for pair in self.missing_pairs(decoder, source, lambda _: False, stride=stride, most=most):
            assert isinstance(pair, EstimatedPair)
            yield pair

    def missing_pairs(
        self,
        decoder: DecoderProcess,
        source: VideoSource,
        is_there: Callable[[SeenPair], bool],
        *,
        stride: int = 1,
        most: int | None = None,
    ) -> Iterator[SeenPair]:
        """As `pairs`, but the pairs of a chunk come without flow if all of them are there already."""
        clips = _clips(_CHUNK_PAIRS[self._device.type], stride, most)
        # A GPU goes on with the next pairs while those before are written.
        goes_ahead = self._device.type == "cuda"
        before: _Computing | None = None
        for computing in self._computing(decoder, source, clips, is_there):
            if before is not None:
                yield from before.result()
            before = None
            if not isinstance(computing, _Computing):
                yield from computing
            elif goes_ahead:
                before = computing
            else:
                yield from computing.result()
        if before is not None:
            yield from before.result()

    @torch.inference_mode()
    def _computing(
        self,
        decoder: DecoderProcess,
        source: VideoSource,
        clips: ClipOptions,
        is_there: Callable[[SeenPair], bool],
    ) -> Iterator["_Computing | list[SeenPair]"]:
        for seen in _seen_chunks(decoder, source, clips):
            if all(map(is_there, seen)):
                yield seen
                continue
            frames = [*(pair.image1 for pair in seen), seen[-1].image2]
            for flow_fw, *others in self._estimates(frames):
                yield _Computing(seen[: len(flow_fw)], flow_fw, *others)
                seen = seen[len(flow_fw) :]

    def _estimates(self, frames: list[Frame]) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """The flow of pairs, the flow back, and the scale."""
        asked = self._network, frames, self._device, self._options
        if self._scaled:
            yield from estimate_scaled(*asked, both=self._both)
        else:
            for flow_fw, back in estimate_frames(*asked, both=self._both):
                yield flow_fw, back, None


def seen_pairs(
    decoder: DecoderProcess, source: VideoSource, *, stride: int = 1, most: int | None = None
) -> Iterator[SeenPair]:
    """The pairs of `VideoFlow.pairs` without their flow."""
    clips = _clips(_CHUNK_PAIRS["cpu"], stride, most)
    for seen in _seen_chunks(decoder, source, clips):
        yield from seen


def _clips(chunk_pairs: int, stride: int, most: int | None) -> ClipOptions:
    return replace(
        EVERY_PAIR, chunk_pairs=chunk_pairs, min_size=(1, 1), stride=stride, max_pairs_per_video=most
    )


def _seen_chunks(
    decoder: DecoderProcess, source: VideoSource, clips: ClipOptions
) -> Iterator[list[SeenPair]]:
    """The pairs of each chunk of consecutive frames. VideoError for whatever keeps a video from being read:
    here no other run will try again."""
    share = 0.0
    try:
        for chunk in decoder.read(source, clips, _AS_IT_IS):
            count, more = len(chunk.frames) - 1, decoder.report.share - share
            frames = [_frame(chunk, number) for number in range(count + 1)]
            yield [
                SeenPair(
                    index=chunk.frame_indices[number],
                    image1=frames[number],
                    image2=frames[number + 1],
                    timestamp=start,
                    seconds=end - start,
                    share=share + more * (number + 1) / count,
                )
                for number, (start, end) in enumerate(pairwise(chunk.timestamps))
            ]
            share += more
    except OSError as error:
        raise VideoError(str(error)) from error


class _Computing:
    """Pairs whose flow a GPU may still be computing."""

    def __init__(
        self, seen: list[SeenPair], flow_fw: Tensor, flow_bw: Tensor | None, scale: Tensor | None
    ) -> None:
        self._seen = seen
        self._flows = [None if flow is None else _to_host(flow) for flow in (flow_fw, flow_bw, scale)]
        self._is_copied = torch.cuda.Event() if flow_fw.is_cuda else None
        if self._is_copied is not None:
            self._is_copied.record()

    def result(self) -> Iterator[EstimatedPair]:
        """Waits for it."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        forward, backward, scale = (None if flow is None else flow.numpy() for flow in self._flows)
        assert forward is not None
        for number, pair in enumerate(self._seen):
            yield EstimatedPair(
                **vars(pair),
                flow_fw=forward[number],
                flow_bw=None if backward is None else backward[number],
                scale_fw=None if scale is None else scale[number, 0],
            )


def _to_host(flow: Tensor) -> Tensor:
    """A copy that the GPU makes when it gets there."""
    if not flow.is_cuda:
        return flow
    there = torch.empty(flow.shape, dtype=flow.dtype, pin_memory=True)
    return there.copy_(flow, non_blocking=True)


def _frame(chunk: EncodedChunk, number: int) -> Frame:
    return _AS_IT_IS.decode(chunk.frames[number], (chunk.height, chunk.width))
