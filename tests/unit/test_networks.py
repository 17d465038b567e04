import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from flowcore.geometry import backward_warp, pad_to_multiple, resize_image, upsample_flow
from flowcore.networks import (
    AnyNetworkConfig,
    BidirectionalFlow,
    FlowNetConfig,
    FlowNetwork,
    NetworkConfig,
    PWCNet,
    PWCNetConfig,
    from_dict,
    full,
    light,
    small,
    tiny,
    to_dict,
)
from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.photometric import census_distance, robust

few = settings(max_examples=30)
seeds = st.integers(0, 2**31)

SMALL = PWCNetConfig(
    encoder_widths=(4, 6, 8, 8), decoder_widths=(8, 6), context_widths=(8, 6), finest_level=2, radius=2
)
AFRESH = dataclasses.replace(SMALL, refines=False)
"""Each of its levels answers for itself, as in DDFlow."""


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where nothing asserts the shapes of arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def small_network(config: PWCNetConfig = SMALL) -> PWCNet:
    torch.manual_seed(0)
    return config.build()


def answering(network: PWCNet, u: float, v: float, levels: slice) -> PWCNet:
    """`network` with decoders of these levels, finest first, that answer (u, v) everywhere."""
    for head in network.heads[levels]:
        assert isinstance(head, nn.Conv2d)
        assert head.bias is not None
        head.weight.data.zero_()
        head.bias.data = torch.tensor([u, v]) / 20
    for parameter in network.context[-1].parameters():
        parameter.data.zero_()
    return network


def cost_volume_by_loops(features1: Tensor, features2: Tensor, radius: int) -> Tensor:
    batch, _, height, width = features1.shape
    displacements = [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]
    values = [
        (features1[b, :, y, x] * features2[b, :, y + dy, x + dx]).sum()
        if 0 <= y + dy < height and 0 <= x + dx < width
        else features1.new_zeros(())
        for b in range(batch)
        for dy, dx in displacements
        for y in range(height)
        for x in range(width)
    ]
    return torch.stack(values).view(batch, len(displacements), height, width)


@few
@given(
    seed=seeds,
    channels=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    radius=st.integers(0, 2),
)
def test_the_cost_volume_equals_a_slow_loop_in_value_and_gradients(
    seed: int, channels: int, height: int, width: int, radius: int
) -> None:
    features1, features2 = random(seed, 2, 2, channels, height, width).double().unbind()
    features1.requires_grad_()
    features2.requires_grad_()
    weight = random(seed + 1, 2, (2 * radius + 1) ** 2, height, width).double()
    answers = []
    for function in (cost_volume, cost_volume_by_loops):
        volume = function(features1, features2, radius)
        answers.append((volume, *torch.autograd.grad((volume * weight).sum(), (features1, features2))))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (0, 1), (-2, 1), (2, 2)])
def test_what_moved_costs_most_in_the_channel_of_its_displacement(dx: int, dy: int) -> None:
    features1, features2 = torch.zeros(2, 1, 1, 7, 7)
    features1[..., 3, 3] = 1
    features2[..., 3 + dy, 3 + dx] = 1
    volume = cost_volume(features1, features2, radius=2)
    assert volume.nonzero().tolist() == [[0, (2 + dy) * 5 + (2 + dx), 3, 3]]


def test_the_cost_volume_is_the_same_in_either_memory_layout() -> None:
    planes = random(0, 2, 2, 5, 6, 7)
    for first, second in ((True, False), (False, True), (True, True)):
        features1, features2 = (
            each.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
            for each, is_last in zip(planes, (first, second), strict=True)
        )
        volume = cost_volume(features1, features2, 2)
        torch.testing.assert_close(volume, cost_volume(*planes, 2), rtol=1e-5, atol=1e-5)
        assert volume.is_contiguous(memory_format=torch.channels_last) == first


def test_between_its_passes_the_cost_volume_keeps_its_two_inputs_alone() -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def nothing(tensor: Any) -> Any:
        return tensor

    features1, features2 = random(0, 2, 1, 3, 5, 6).requires_grad_().unbind()
    with torch.autograd.graph.saved_tensors_hooks(count, nothing):
        cost_volume(features1, features2)
    assert kept == [3 * 5 * 6] * 2


@few
@given(seed=seeds, scale=st.floats(0.1, 10), offset=st.floats(-5, 5))
def test_normalised_features_have_unit_length_and_forget_scale_and_offsets(
    seed: int, scale: float, offset: float
) -> None:
    features = random(seed, 2, 5, 4, 6).double()
    normal = normalize_features(features)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(2, 4, 6, dtype=torch.float64))
    moved = features * scale
    moved[:, 2] += offset
    torch.testing.assert_close(normalize_features(moved), normal)
    torch.testing.assert_close(normalize_features(features[1:]), normal[1:])


def test_features_without_any_contrast_are_zero_with_a_finite_gradient() -> None:
    features = torch.full((1, 4, 3, 5), 0.5, requires_grad=True)
    normal = normalize_features(features)
    assert normal.eq(0).all()
    (gradient,) = torch.autograd.grad(normal[:, 0, 0, 0].sum(), features)
    assert gradient.isfinite().all()


def test_the_default_network_is_the_light_pwcnet_of_the_papers() -> None:
    network = PWCNetConfig().build()
    encoder = [
        convolution
        for before, after in pairwise((3, 16, 32, 64, 96, 128, 192))
        for convolution in ((before, after, 2, 1), (after, after, 1, 1))
    ]
    decoders = [
        convolution
        # 81 displacements; below the coarsest level also 2 of the flow and 32 hidden channels from above
        for channels in (81 + 32 + 34, 81 + 64 + 34, 81 + 96 + 34, 81 + 128 + 34, 81 + 192)
        for convolution in [(a, b, 1, 1) for a, b in pairwise((channels, 128, 128, 96, 64, 32))]
    ]
    context_widths = pairwise((34, 128, 128, 128, 96, 64, 32, 2))
    context = [
        (a, b, 1, dilation) for (a, b), dilation in zip(context_widths, (1, 2, 4, 8, 16, 1, 1), strict=True)
    ]

    def convolutions(module: nn.Module) -> list[tuple[int, int, int, int]]:
        found = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        assert all(layer.kernel_size == (3, 3) for layer in found)
        return [
            (layer.in_channels, layer.out_channels, layer.stride[0], layer.dilation[0]) for layer in found
        ]

    assert convolutions(network.encoder) == encoder
    assert convolutions(network.decoders) == decoders
    assert convolutions(network.context) == context
    assert convolutions(network.heads) == [(32, 2, 1, 1)] * 5
    assert network.strides == (4, 8, 16, 32, 64)
    assert network.multiple == 64


@pytest.mark.parametrize(
    ("widths", "finest", "strides", "multiple"),
    [((4, 6), 1, (2, 4), 4), ((4, 6, 8), 1, (2, 4, 8), 8), ((4, 6, 8, 8), 3, (8, 16), 16)],
)
def test_levels_follow_from_the_configuration(
    widths: tuple[int, ...], finest: int, strides: tuple[int, ...], multiple: int
) -> None:
    network = small_network(
        PWCNetConfig(
            encoder_widths=widths, finest_level=finest, decoder_widths=(5,), context_widths=(), radius=1
        )
    )
    assert (network.strides, network.multiple) == (strides, multiple)
    height, width = 2 * multiple, 3 * multiple
    flows = network(random(0, 2, 3, height, width), random(1, 2, 3, height, width))
    assert flows.strides == strides
    for levels in (flows.forward, flows.backward):
        assert [level.shape for level in levels] == [(2, 2, height // s, width // s) for s in strides]


def test_both_directions_are_those_of_two_calls_with_the_frames_swapped() -> None:
    network = small_network()
    image1, image2 = random(0, 2, 2, 3, 32, 48).unbind()
    there, back = network(image1, image2), network(image2, image1)
    for ours, theirs in ((there.forward, back.backward), (there.backward, back.forward)):
        for level, same_level in zip(ours, theirs, strict=True):
            torch.testing.assert_close(level, same_level, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(there.forward[0], there.backward[0], atol=1e-2)


def test_a_pair_gets_the_same_flow_alone_and_in_a_batch() -> None:
    network = small_network()
    image1, image2 = random(0, 2, 3, 3, 32, 48).unbind()
    batch, alone = network(image1, image2), network(image1[1:2], image2[1:2])
    for level, same_level in zip(batch.forward + batch.backward, alone.forward + alone.backward, strict=True):
        torch.testing.assert_close(level[1:2], same_level, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (16, 5)])
def test_a_chunk_gets_the_flow_of_each_of_its_pairs(height: int, width: int) -> None:
    network = small_network()
    frames = random(0, 4, 3, height, width)
    chunk_fw, chunk_bw = network.estimate_chunk(frames)
    assert len(chunk_fw) == len(chunk_bw) == 3
    for pair in range(3):
        flow_fw, flow_bw = network.estimate(frames[pair : pair + 1], frames[pair + 1 : pair + 2])
        for chunk, flow in ((chunk_fw, flow_fw), (chunk_bw, flow_bw)):
            full = upsample_flow(chunk[pair : pair + 1], network.strides[0], height, width)
            torch.testing.assert_close(full, flow, rtol=1e-4, atol=1e-4)


def test_frames_that_do_not_fit_are_padded_and_their_flow_cropped_back() -> None:
    network = small_network()
    image1, image2 = random(0, 2, 1, 3, 37, 50).unbind()
    flow_fw, flow_bw = network.estimate(image1, image2)
    padded = network(pad_to_multiple(image1, 16), pad_to_multiple(image2, 16))
    for flow, level in ((flow_fw, padded.forward[0]), (flow_bw, padded.backward[0])):
        full = functional.interpolate(level, scale_factor=4, mode="bilinear", align_corners=False)
        assert flow.shape == (1, 2, 37, 50)
        assert flow.equal(full[..., :37, :50])


@pytest.mark.parametrize(
    ("image1", "image2", "remedy"),
    [
        (torch.zeros(3, 32, 48), torch.zeros(3, 32, 48), r"image\[None\]"),
        (torch.zeros(1, 32, 48, 3), torch.zeros(1, 32, 48, 3), r"image\.movedim\(-1, 1\)"),
        (torch.zeros(1, 1, 32, 48), torch.zeros(1, 1, 32, 48), r"must be \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 64), "must have the same shape"),
        (torch.zeros(1, 3, 32, 48), torch.zeros(2, 3, 32, 48), "must have the same shape"),
        (
            torch.zeros(1, 3, 32, 48),
            torch.full((1, 3, 32, 48), 255.0),
            "reaches 255 .* divide it by 255",
        ),
        (torch.zeros(1, 3, 32, 48).byte(), torch.zeros(1, 3, 32, 48), r"image\.float\(\) / 255"),
    ],
)
def test_what_are_no_frames_of_one_size_in_0_to_1_is_refused_with_the_remedy(
    image1: Tensor, image2: Tensor, remedy: str, unchecked_shapes: None
) -> None:
    with pytest.raises(ValueError, match=remedy):
        small_network().estimate(image1, image2)


def test_frames_that_do_not_fit_are_refused_in_training_with_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"frames of \(32, 40\) px must be multiples of 16 px on each side .*pad"
    ):
        small_network()(torch.zeros(1, 3, 32, 40), torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 64), (17, 90)])
def test_the_unit_of_every_level_is_a_pixel_of_the_frame_at_any_size(height: int, width: int) -> None:
    network = answering(small_network(AFRESH), 6.0, -2.0, slice(None))
    image1, image2 = random(0, 2, 1, 3, height, width).unbind()
    uniform = torch.tensor([6.0, -2.0]).view(1, 2, 1, 1)
    flows = network(pad_to_multiple(image1, 16), pad_to_multiple(image2, 16))
    for level in (*flows.forward, *flows.backward, *network.estimate(image1, image2)):
        torch.testing.assert_close(level, uniform.expand_as(level))


@pytest.mark.parametrize(("level", "stride"), [(0, 4), (1, 8)])
def test_a_level_compares_features_where_the_level_above_says_they_moved(level: int, stride: int) -> None:
    network = answering(small_network(AFRESH), 2.0 * stride, -1.0 * stride, slice(level + 1, level + 2))
    image1, image2 = random(0, 2, 1, 3, 64, 64).unbind()
    seen: list[Tensor] = []
    network.decoders[level].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network(image1, image2)
    first, second = network.encode(image1)[level], network.encode(image2)[level]
    # Two of the level's own pixels right and one up; beyond the frame its border repeats.
    columns = (torch.arange(64 // stride) + 2).clamp(max=64 // stride - 1)
    rows = (torch.arange(64 // stride) - 1).clamp(min=0)
    moved = second[:, :, rows][:, :, :, columns]
    volume = functional.leaky_relu(cost_volume(normalize_features(first), normalize_features(moved), 2), 0.1)
    torch.testing.assert_close(seen[0][:1, :25], volume, rtol=1e-3, atol=1e-4)


def test_a_level_adds_to_the_upsampled_flow_of_the_level_before() -> None:
    network = answering(small_network(), 3.0, -1.0, slice(None))
    image1, image2 = random(0, 2, 1, 3, 32, 48).unbind()
    levels = network(image1, image2).forward
    for number, level in enumerate(reversed(levels), start=1):
        expected = number * torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
        torch.testing.assert_close(level, expected.expand_as(level))


def test_flownets_levels_add_to_the_flow_of_the_level_before_too() -> None:
    torch.manual_seed(0)
    network = FlowNetConfig(encoder_widths=(4, 4, 4, 4, 4), decoder_widths=(4, 4, 4)).build()
    for head in network.heads:
        assert isinstance(head, nn.Conv2d)
        assert head.bias is not None
        head.weight.data.zero_()
        head.bias.data = torch.tensor([3.0, -1.0]) / 20
    levels = network(*random(0, 2, 1, 3, 32, 64).unbind()).forward
    for number, level in enumerate(reversed(levels), start=1):
        expected = number * torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
        torch.testing.assert_close(level, expected.expand_as(level))


def test_learned_upsampling_adds_a_level_of_half_the_stride() -> None:
    network = small_network(dataclasses.replace(SMALL, learned_upsampling=True))
    assert network.strides == (2, 4, 8, 16)
    flows = network(*random(0, 2, 1, 3, 32, 48).unbind())
    assert [level.shape[-2:] for level in flows.forward] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    # A weighted mean of the nine vectors around: never beyond them.
    around = functional.max_pool2d(functional.pad(flows.forward[1], (1,) * 4, mode="replicate"), 3, stride=1)
    assert (flows.forward[0] <= around.repeat_interleave(2, 2).repeat_interleave(2, 3) + 1e-5).all()


def test_every_weight_learns_from_the_levels() -> None:
    network = small_network()
    image1, image2 = random(0, 2, 1, 3, 32, 48).unbind()
    flows = network(image1, image2)
    sum(level.square().sum() for level in flows.forward).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_a_label_costs_no_graph() -> None:
    network = small_network()
    image1, image2 = random(0, 2, 1, 3, 32, 48).unbind()
    labels = (*network.estimate(image1, image2), *network.estimate_chunk(torch.cat([image1, image2])))
    assert not any(label.requires_grad for label in labels)


def test_frames_that_are_one_colour_give_a_finite_flow_and_gradient() -> None:
    network = small_network()
    black = torch.zeros(1, 3, 32, 32)
    flows = network(black, black)
    assert all(level.isfinite().all() for level in flows.forward)
    flows.forward[0].square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_a_network_that_diverged_answers_with_nan_and_the_process_lives() -> None:
    network = small_network()
    next(network.encoder.parameters()).data[:] = torch.nan
    flows = network(random(0, 1, 3, 32, 32), random(1, 1, 3, 32, 32))
    assert flows.forward[0].isnan().all()
    flows.forward[0].sum().backward()


def test_a_seed_decides_the_fresh_weights_which_estimate_little_motion() -> None:
    first, second = small_network(), small_network()
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(0)
    network = PWCNetConfig().build()
    flow, _ = network.estimate(random(0, 1, 3, 64, 128), random(1, 1, 3, 64, 128))
    assert 0 < flow.norm(dim=1).mean() < 64


@pytest.mark.parametrize("config", [PWCNetConfig(), SMALL, *tiny().values()])
def test_a_configuration_survives_json_and_fits_its_weights(config: NetworkConfig) -> None:
    stored = json.loads(json.dumps(to_dict(config)))
    assert stored["architecture"] in ("pwcnet", "flownet", "raft")
    assert from_dict(stored) == config
    from_dict(stored).build().load_state_dict(config.build().state_dict())


def test_a_configuration_is_not_changed_by_reading_it() -> None:
    stored = to_dict(SMALL)
    before = dict(stored)
    from_dict(stored)
    assert stored == before


@pytest.mark.parametrize("stored", [{"architecture": "vcn"}, {}])
def test_an_unknown_architecture_is_named_beside_the_known_ones(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is unknown; this version knows pwcnet"):
        from_dict(stored)


def test_an_option_of_another_version_is_named() -> None:
    with pytest.raises(
        ValueError, match="pwcnet has no option depth; the checkpoint was made by another version"
    ):
        from_dict({**to_dict(SMALL), "depth": 3})


@pytest.mark.parametrize("finest", [0, 4, 5])
def test_a_finest_level_beyond_the_encoder_is_refused(finest: int) -> None:
    with pytest.raises(ValueError, match=rf"finest_level {finest} must lie in 1\.\.3"):
        PWCNetConfig(encoder_widths=(4, 6, 8, 8), finest_level=finest)


def test_a_context_network_longer_than_its_dilations_is_refused() -> None:
    with pytest.raises(ValueError, match="must have at most 6 entries"):
        PWCNetConfig(context_widths=(8,) * 7)


BACKBONES = tiny()


@pytest.mark.parametrize("sizes", [tiny, small, full])
def test_every_backbone_has_every_size(sizes: Callable[[], dict[str, AnyNetworkConfig]]) -> None:
    assert list(sizes()) == ["pwcnet", "flownets", "flownetc", "raft_small", "raft"]


def test_a_larger_size_has_more_weights() -> None:
    def weights(config: NetworkConfig) -> int:
        return sum(parameter.numel() for parameter in config.build().parameters())

    for backbone, config in tiny().items():
        assert weights(config) < weights(small()[backbone]) < weights(full()[backbone])
    assert weights(light()["pwcnet"]) < weights(full()["pwcnet"])


def test_reversed_flow_is_that_of_the_swapped_frames() -> None:
    forward, backward = [torch.ones(1, 2, 4, 4)], [torch.zeros(1, 2, 4, 4)]
    flows = BidirectionalFlow(forward=forward, backward=backward, strides=(4,))
    assert flows.reversed() == BidirectionalFlow(forward=backward, backward=forward, strides=(4,))
    assert flows.reversed().reversed() == flows


def fresh(backbone: str) -> FlowNetwork:
    torch.manual_seed(0)
    return BACKBONES[backbone].build()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_levels_of_its_strides_in_both_directions(backbone: str) -> None:
    network = fresh(backbone)
    height, width = 2 * network.multiple, 3 * network.multiple
    flows = network(random(0, 2, 3, height, width), random(1, 2, 3, height, width))
    assert flows.strides == network.strides
    assert list(network.strides) == sorted(network.strides)
    for levels in (flows.forward, flows.backward):
        sizes = [tuple(level.shape) for level in levels]
        assert sizes == [(2, 2, height // stride, width // stride) for stride in network.strides]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_swaps_its_flows_when_the_frames_are_swapped(backbone: str) -> None:
    network = fresh(backbone)
    image1, image2 = random(0, 2, 1, 3, 64, 96)
    there, back = network(image1, image2), network(image2, image1)
    for first, second in zip(there.forward + there.backward, back.backward + back.forward, strict=True):
        torch.testing.assert_close(first, second)
    assert not torch.allclose(there.forward[0], there.backward[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_a_pair_the_same_flow_alone_and_in_a_chunk(backbone: str) -> None:
    network = fresh(backbone).eval()
    frames = random(3, 4, 3, 64, 96)
    forward, backward = network.estimate_chunk(frames)
    with torch.no_grad():
        for number in range(3):
            alone = network(frames[number : number + 1], frames[number + 1 : number + 2])
            torch.testing.assert_close(alone.forward[0], forward[number : number + 1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.backward[0], backward[number : number + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_encodes_each_frame_of_a_chunk_in_steps_once(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fresh(backbone).ready(torch.device("cpu"))
    frames = random(3, 6, 3, 64, 96)
    whole = network.estimate_chunk(frames)
    encoded: list[Tensor] = []
    encode = network.encode

    def noting(images: Tensor) -> list[Tensor]:
        encoded.extend(images)
        return encode(images)

    monkeypatch.setattr(network, "encode", noting)
    in_steps = network.estimate_chunk(frames, 2)
    assert torch.stack(encoded).equal(frames)
    for one, other in zip(whole, in_steps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_made_ready_for_a_cpu_gives_the_same_flow(
    backbone: str,
) -> None:
    network, frames = fresh(backbone).eval(), random(3, 3, 3, 64, 96)
    plain = network.estimate_chunk(frames)
    ready = network.ready(torch.device("cpu"))
    for one, other in zip(plain, ready.estimate_chunk(frames), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    weights = [each for each in ready.parameters() if each.ndim == 4 and each[0, 0].numel() > 1]
    assert weights
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in weights)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("height", "width"), [(33, 47), (16, 90)])
def test_every_backbone_estimates_frames_of_any_size(backbone: str, height: int, width: int) -> None:
    forward, backward = fresh(backbone).eval().estimate(*random(0, 2, 1, 3, height, width))
    assert forward.shape == backward.shape == (1, 2, height, width)
    assert forward.isfinite().all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_refuses_frames_that_do_not_fit(backbone: str) -> None:
    with pytest.raises(ValueError, match="must be multiples of"):
        fresh(backbone)(*random(0, 2, 1, 3, 65, 96))


def photometric_loss(network: FlowNetwork, image1: Tensor, image2: Tensor) -> Tensor:
    """The census loss of the three finest levels in both directions, without an occlusion mask."""
    loss = torch.zeros(())
    flows = network(image1, image2)
    for levels, first, second in ((flows.forward, image1, image2), (flows.backward, image2, image1)):
        for weight, level, stride in zip((1.0, 0.5, 0.25), levels, flows.strides, strict=False):
            here, there = (resize_image(each, *level.shape[-2:]) for each in (first, second))
            here, there = (functional.pad(each, [3] * 4, mode="replicate") for each in (here, there))
            moved = backward_warp(there, functional.pad(level / stride, [3] * 4, mode="replicate"))
            loss = loss + weight * robust(census_distance(here, moved)[..., 3:-3, 3:-3]).mean()
    return loss


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_of_every_backbone_learns_from_the_frames(backbone: str) -> None:
    network = fresh(backbone)
    image1, image2 = random(0, 2, 2, 3, 64, 96)
    photometric_loss(network, image1, image2).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_one_motion_from_the_frames(backbone: str) -> None:
    network = fresh(backbone)
    texture = functional.interpolate(random(5, 1, 3, 12, 18), (72, 104), mode="bicubic").clamp(0, 1)
    image1, image2 = texture[..., 4:68, 4:100], texture[..., 2:66, 1:97]
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for _ in range(30):
        optimizer.zero_grad()
        photometric_loss(network, image1, image2).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    flow, _ = network.eval().estimate(image1, image2)
    # What is at p in image1 is 3 px to the right and 2 px down in image2.
    error = (flow - torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)).norm(dim=1).mean()
    assert error < 0.5 * 13**0.5


def test_decoders_of_another_number_than_flownets_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="must be two fewer than encoder_widths"):
        FlowNetConfig(encoder_widths=(8, 8, 8, 8), decoder_widths=(8,))


def levels_and_gradient(network: FlowNetwork, autocast: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    image1, image2 = random(5, 2, 2, 3, 64, 64).unbind()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        flows = network(image1, image2)
    levels = [*flows.forward, *flows.backward]
    assert {level.dtype for level in levels} == {torch.float32}
    network.zero_grad()
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([level.detach().flatten() for level in levels]), torch.cat(gradients)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recomputed_activations_give_the_same_gradient_and_are_not_kept(
    backbone: str,
) -> None:
    def kept_by(network: FlowNetwork) -> int:
        sizes: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(*random(5, 2, 2, 3, 64, 64).unbind())
        return sum(sizes.values())

    network = fresh(backbone)
    expected, kept = levels_and_gradient(network), kept_by(network)
    network.checkpoints_activations = True
    for one, two in zip(levels_and_gradient(network), expected, strict=True):
        assert torch.equal(one, two)
    assert kept_by(network) < kept


@pytest.mark.parametrize("backbone", BACKBONES)
def test_in_bfloat16_flow_is_float32_and_nearly_the_same(backbone: str) -> None:
    network = fresh(backbone)
    flow, gradient = levels_and_gradient(network)
    half_flow, half_gradient = levels_and_gradient(network, torch.bfloat16)
    tolerance = 4 * torch.finfo(torch.bfloat16).eps
    assert 0 < (half_flow - flow).norm() < tolerance * flow.norm()
    assert (half_gradient - gradient).norm() < 4 * tolerance * gradient.norm()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_channels_last_changes_neither_flow_nor_gradient(backbone: str) -> None:
    network = fresh(backbone)
    flow, gradient = levels_and_gradient(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for one, two in zip(levels_and_gradient(network), (flow, gradient), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()))
