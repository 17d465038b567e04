"""RAFT is the published network, its correlation that of all pairs, however it is computed."""

import dataclasses
import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from flowcore.networks import FlowNetwork, RAFTConfig, from_dict, full, tiny, to_dict
from flowcore.networks.all_pairs import OnDemand, Volume, both_ways, one_way
from flowcore.networks.correlation import cost_volume
from flowcore.networks.layers import doubled
from flowcore.networks.raft import RAFT
from flowcore.networks.raft_layers import ConvGRU, FrozenBatchNorm, convexly_upsampled

few = settings(max_examples=20)
seeds = st.integers(0, 2**31)
VARIANTS = {name: config for name, config in tiny().items() if isinstance(config, RAFTConfig)}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def fresh(variant: str) -> RAFT:
    torch.manual_seed(0)
    return VARIANTS[variant].build()


def all_products(features1: Tensor, features2: Tensor) -> Tensor:
    products = torch.einsum("bcyx,bcvu->byxvu", features1, features2)
    return products / features1.shape[1] ** 0.5


BLOCKS = {"0": "convnormrelu.0", "1": "convnormrelu.1"}
OUTER = {
    "motion.similarity.0": "update_block.motion_encoder.convcorr1.0",
    "motion.similarity.2": "update_block.motion_encoder.convcorr2.0",
    "motion.flow.0": "update_block.motion_encoder.convflow1.0",
    "motion.flow.2": "update_block.motion_encoder.convflow2.0",
    "motion.both.0": "update_block.motion_encoder.conv.0",
    "head.0": "update_block.flow_head.conv1",
    "head.2": "update_block.flow_head.conv2",
    "mask.0": "mask_predictor.convrelu.0",
    "mask.2": "mask_predictor.conv",
}
"""torchvision's name of what isn't in an encoder or the recurrent unit."""


def their_layers(encoder: nn.Module, prefix: str) -> dict[str, str]:
    """torchvision's name of each layer of an encoder of ours, by ours."""
    children = list(encoder.children())
    is_normed = not isinstance(children[1], nn.ReLU)
    stem = 3 if is_normed else 2
    names = {str(number): f"{prefix}.convnormrelu.{number}" for number in range(2)}
    for place in range(stem, len(children) - 1):
        layer, block = divmod(place - stem, 2)
        theirs = f"{prefix}.layer{layer + 1}.{block}"
        for number in range(9):
            which, part = divmod(number, stem)
            names[f"{place}.body.{number}"] = f"{theirs}.convnormrelu{which + 1}.{part}"
        names |= {f"{place}.shortcut.{number}": f"{theirs}.downsample.{number}" for number in range(2)}
    return names | {str(len(children) - 1): f"{prefix}.conv"}


def our_weights(network: RAFT, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision's network under our names."""
    layers = OUTER.copy()
    for ours, its in (("features", "feature_encoder"), ("context", "context_encoder")):
        named = their_layers(getattr(network, ours), its)
        layers |= {f"{ours}.{name}": layer for name, layer in named.items()}
    kinds = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    weights = {}
    for name in network.state_dict():
        layer, _, kind = name.rpartition(".")
        if not name.startswith("update"):
            weights[name] = theirs[f"{layers[layer]}.{kinds[kind]}"]
    hidden, context = network.config.hidden_width, network.config.context_width
    for number in range(len(network.update)):
        unit = f"update_block.recurrent_block.convgru{number + 1}"
        gates = torch.cat([theirs[f"{unit}.convz.weight"], theirs[f"{unit}.convr.weight"]])
        proposal = theirs[f"{unit}.convq.weight"]
        # They see state, context and motion at once.
        for name, weight in (("gates", gates), ("proposal", proposal)):
            parts = [weight[:, :hidden], weight[:, hidden + context :]]
            weights[f"update.{number}.{name}.weight"] = torch.cat(parts, dim=1)
        of_context = torch.cat([gates, proposal])[:, hidden : hidden + context]
        weights[f"update.{number}.context.weight"] = of_context
        biases = [theirs[f"{unit}.conv{gate}.bias"] for gate in "zrq"]
        weights[f"update.{number}.context.bias"] = torch.cat(biases)
    return weights


def torchvision_s(name: str) -> nn.Module:
    reason = "torchvision isn't installed: pip install -e '.[torchvision]'"
    models = pytest.importorskip("torchvision", reason=reason).models.optical_flow
    torch.manual_seed(1)
    theirs: nn.Module = models.raft_large() if name == "raft" else models.raft_small()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # As after training.
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return theirs.eval()


@pytest.mark.parametrize("name", ["raft", "raft_small"])
def test_torchvision_s_network_with_the_same_weights_gives_the_same_flow(name: str) -> None:
    theirs, ours = torchvision_s(name), full()[name].build()
    assert isinstance(ours, RAFT)
    ours.load_state_dict(our_weights(ours, theirs.state_dict()))
    image1, image2 = random(0, 2, 2, 3, 136, 160).unbind()
    with torch.no_grad():
        mine, its = ours(image1, image2), theirs(2 * image1 - 1, 2 * image2 - 1)
        back = theirs(2 * image2 - 1, 2 * image1 - 1)
    assert its[-1].abs().mean() > 0.1
    for levels, expected in ((mine.forward, its), (mine.backward, back)):
        for level, flow in zip(levels, reversed(expected), strict=True):
            if name == "raft_small":
                # Its code aligns corners where it upsamples; all of ours has half-pixel centres.
                level = functional.interpolate(level, flow.shape[-2:], mode="bilinear", align_corners=True)
            assert (level - flow).abs().max() < 1e-3


@pytest.mark.parametrize(("name", "published"), [("raft", 5_257_536), ("raft_small", 990_162)])
def test_raft_has_as_many_weights_as_the_published_one(name: str, published: int) -> None:
    assert sum(weight.numel() for weight in full()[name].build().parameters()) == published


def looked_up_by_loops(
    features1: Tensor, features2: Tensor, flow: Tensor, scales: int, radius: int
) -> Tensor:
    """The similarities of one pair, pixel by pixel."""
    channels, height, width = features1.shape
    values = []
    for scale in range(scales):
        averaged = functional.avg_pool2d(features2, 2**scale)
        rows, columns = averaged.shape[-2:]
        for dx, dy in itertools.product(range(-radius, radius + 1), repeat=2):
            for y, x in itertools.product(range(height), range(width)):
                across = (x + float(flow[0, y, x])) / 2**scale + dx
                down = (y + float(flow[1, y, x])) / 2**scale + dy
                total = 0.0
                for row, column in itertools.product(range(rows), range(columns)):
                    weight = max(0.0, 1 - abs(across - column)) * max(0.0, 1 - abs(down - row))
                    if weight > 0:
                        total += weight * float(features1[:, y, x] @ averaged[:, row, column])
                values.append(total / channels**0.5)
    return torch.tensor(values).view(-1, height, width)


@pytest.mark.parametrize("kind", ["volume", "on demand"])
def test_a_lookup_equals_a_slow_loop(kind: str) -> None:
    features1, features2 = random(0, 2, 1, 3, 4, 7) - 0.5
    flow = (random(1, 1, 2, 4, 7) - 0.5) * 6
    if kind == "volume":
        found = Volume(all_products(features1, features2), 2, 1).around(flow)
    else:
        found = OnDemand(features1, features2, 2, 1).around(flow)
    expected = looked_up_by_loops(features1[0], features2[0], flow[0], 2, 1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@few
@given(
    seed=seeds,
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    radius=st.integers(1, 3),
    scales=st.integers(1, 4),
    reach=st.sampled_from([0.5, 5.0, 100.0]),
)
def test_similarities_on_demand_are_those_of_the_volume_within_a_hundred_thousandth(
    seed: int, height: int, width: int, radius: int, scales: int, reach: float
) -> None:
    features = [(each - 0.5).requires_grad_() for each in random(seed, 2, 2, 16, height, width)]
    flow = (random(seed + 1, 2, 2, height, width) - 0.5) * 2 * reach
    answers = []
    for correlation in (
        Volume(all_products(features[0], features[1]), scales, radius),
        OnDemand(features[0], features[1], scales, radius),
    ):
        found = correlation.around(flow)
        weights = random(seed + 2, *found.shape)
        answers.append((found, *torch.autograd.grad((found * weights).sum(), features)))
    for built, on_demand in zip(*answers, strict=True):
        torch.testing.assert_close(built, on_demand, rtol=0, atol=1e-5 * max(1.0, built.abs().max().item()))


def test_similarities_on_demand_are_the_same_in_parts_and_without_a_graph() -> None:
    # At 128 channels and 64 places a window, 512 of the 2400 pixels are looked up at once.
    features1, features2 = random(0, 2, 2, 128, 30, 40) - 0.5
    flow = (random(1, 2, 2, 30, 40) - 0.5) * 20
    expected = Volume(all_products(features1, features2), 4, 3).around(flow)
    torch.testing.assert_close(OnDemand(features1, features2, 4, 3).around(flow), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        alone = OnDemand(features1, features2, 4, 3).around(flow)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


def test_large_frames_are_looked_up_without_anything_of_the_size_of_a_volume() -> None:
    height, width = 128, 129
    features1, features2 = random(0, 2, 1, 4, height, width)
    with torch.no_grad(), Counting() as counting:
        both_ways(features1, features2, 4, 2).around(torch.zeros(2, 2, height, width))
    assert counting.largest < (height * width) ** 2 / 50


def test_without_flow_a_lookup_finds_what_a_cost_volume_does() -> None:
    features1, features2 = random(0, 2, 1, 8, 10, 12)
    found = one_way(features1, features2, 1, 2).around(torch.zeros(1, 2, 10, 12))
    # The cost volume goes row by row, the lookup column by column.
    expected = cost_volume(features1, features2, 2).view(1, 5, 5, 10, 12).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(found, expected / 8**0.5)


@pytest.mark.parametrize("size", [(5, 6), (129, 128)])
def test_both_ways_are_one_way_and_the_other(size: tuple[int, int]) -> None:
    features1, features2 = random(0, 2, 1, 2, *size)
    flow = (random(1, 2, 2, *size) - 0.5) * 4
    both = both_ways(features1, features2, 2, 1).around(flow)
    there = one_way(features1, features2, 2, 1).around(flow[:1])
    back = one_way(features2, features1, 2, 1).around(flow[1:])
    torch.testing.assert_close(both, torch.cat([there, back]))


def test_only_small_frames_have_a_volume() -> None:
    # 2^28 products of 128x128 pixels with as many.
    for size, kind in (((128, 128), Volume), ((128, 129), OnDemand)):
        with FakeTensorMode():
            features = torch.zeros(1, 1, *size)
            assert type(one_way(features, features, 1, 1)) is kind
            assert type(both_ways(features, features, 1, 1)) is kind


def test_a_flow_that_is_not_finite_has_similarities_that_are_not_and_the_process_lives() -> None:
    features = random(0, 1, 4, 6, 6)
    flow = torch.zeros(1, 2, 6, 6)
    flow[..., 2, 3] = torch.nan
    flow[..., 4, 4] = torch.inf
    found = OnDemand(features, features, 2, 1).around(flow)
    assert found[..., 2, 3].isnan().all()
    assert found[..., 0, 0].isfinite().all()


class Counting(TorchDispatchMode):
    """How often each operation is called, and how many numbers its result has at most."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def calls(network: FlowNetwork, iterations: int) -> dict[str, int]:
    network.set_iterations(iterations)
    with Counting() as counting:
        network(*random(0, 2, 1, 3, 64, 96).unbind())
    return counting.calls


@each_variant
def test_both_directions_are_compared_once_and_no_iteration_makes_a_grid(variant: str) -> None:
    once, often = calls(fresh(variant), 1), calls(fresh(variant), 5)
    assert once["aten::bmm"] == often["aten::bmm"] == 1
    assert once["aten::arange"] == often["aten::arange"]
    assert often["aten::grid_sampler_2d"] == 5 * once["aten::grid_sampler_2d"]


@each_variant
def test_raft_begins_at_rest(variant: str) -> None:
    network = fresh(variant)
    for parameter in network.head[-1].parameters():
        parameter.data.zero_()
    flows = network(*random(0, 2, 1, 3, 32, 48))
    assert len(flows.forward) == 3
    assert all(level.eq(0).all() for level in flows.forward)


@each_variant
def test_more_iterations_go_on_from_fewer_with_the_same_weights(variant: str) -> None:
    network = fresh(variant).eval()
    image1, image2 = random(0, 2, 1, 3, 32, 48)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    few_levels = network(image1, image2).forward
    network.set_iterations(5)
    levels = network(image1, image2).forward
    assert (len(few_levels), len(levels), len(network.strides)) == (3, 5, 5)
    for one, other in zip(few_levels, levels[2:], strict=True):
        assert torch.equal(one, other)
    assert weights.keys() == network.state_dict().keys()
    assert all(value.equal(network.state_dict()[name]) for name, value in weights.items())


@each_variant
def test_the_estimate_is_the_last_iteration_s_flow(variant: str) -> None:
    network = fresh(variant).eval()
    image1, image2 = random(0, 2, 2, 3, 32, 48)
    flows = network(image1, image2)
    features1, features2 = network.encode(image1), network.encode(image2)
    torch.testing.assert_close(network.decode_finest(features1, features2), flows.forward[0])
    if flows.strides[0] == 1:
        for estimate, level in zip(
            network.estimate(image1, image2), (flows.forward[0], flows.backward[0]), strict=True
        ):
            torch.testing.assert_close(estimate, level)


@pytest.mark.parametrize("iterations", [0, -3])
def test_iterations_below_one_are_refused(iterations: int) -> None:
    with pytest.raises(ValueError, match=f"iterations {iterations} must be at least 1"):
        RAFTConfig(iterations=iterations)
    with pytest.raises(ValueError, match=f"iterations {iterations} must be at least 1"):
        fresh("raft").set_iterations(iterations)


def test_a_network_without_iterations_says_which_has_them() -> None:
    with pytest.raises(ValueError, match=r"PWCNet has no iterations to set to 24; of our networks RAFT"):
        tiny()["pwcnet"].build().set_iterations(24)


def test_a_checkpoint_of_the_old_raft_is_an_error_that_names_what_fits() -> None:
    old = {
        "architecture": "raft",
        "encoder_widths": [64, 96, 128],
        "feature_width": 256,
        "hidden_width": 128,
        "context_width": 128,
        "motion_width": 128,
        "iterations": 12,
        "scales": 4,
        "radius": 4,
        "learned_upsampling": True,
    }
    told = "raft has no option learned_upsampling; .* another version: use that one, or train the network"
    with pytest.raises(ValueError, match=told):
        from_dict(old)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stride": 3}, "stride 3 must be 2, 4 or 8"),
        ({"encoder_widths": (64, 96)}, "stride 8 must be .* at most 4"),
        ({"flow_widths": (64,)}, r"flow_widths \(64,\) two"),
        ({"similarity_widths": ()}, r"similarity_widths \(\) must have at least one"),
        ({"motion_width": 2}, "motion_width 2 must be at least 3"),
        ({"variant": "small", "encoder_widths": (64, 96, 126)}, "must be multiples of 4"),
        ({"scales": 0}, "scales 0 must be at least 1"),
    ],
)
def test_sizes_that_no_raft_has_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RAFTConfig(**changes)


@pytest.mark.parametrize("stride", [2, 4, 8])
@each_variant
def test_raft_refines_on_the_grid_that_it_is_told(variant: str, stride: int) -> None:
    network = dataclasses.replace(VARIANTS[variant], stride=stride).build()
    assert network.multiple == stride
    features, _ = network.encode(random(0, 1, 3, 48, 64))
    assert features.shape[-2:] == (48 // stride, 64 // stride)
    assert set(network.strides) == {1 if variant == "raft" else stride}


def test_convex_upsampling_of_a_uniform_flow_is_uniform_within_the_frame() -> None:
    flow = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    fine = convexly_upsampled(flow, random(0, 1, 9 * 16, 4, 6) * 5, 4)
    expected = torch.tensor([6.0, -8.0]).view(1, 2, 1, 1).expand(1, 2, 8, 16)
    torch.testing.assert_close(fine[..., 4:-4, 4:-4], expected)
    # Outside there is zero flow to mix with.
    assert (fine[:, 0] > 0).all()
    assert (fine[:, 0] <= 6 + 1e-5).all()


def test_doubled_uniform_flow_is_uniform() -> None:
    flow = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    twice = doubled(flow, random(0, 1, 36, 4, 6) * 5)
    torch.testing.assert_close(twice, torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 12))


@pytest.mark.parametrize("kernel", [(1, 5), (5, 1), (3, 3)])
def test_the_recurrent_unit_is_one_convolution_over_state_context_and_motion(kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    unit = ConvGRU(4, 3, 5, kernel)
    hidden, context, motion = random(0, 1, 4, 6, 7), random(1, 1, 3, 6, 7), random(2, 1, 5, 6, 7)

    def whole(weight: Tensor, of_context: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        joint = torch.cat([weight[:, :4], of_context, weight[:, 4:]], dim=1)
        inputs = torch.cat([state, context, motion], dim=1)
        return functional.conv2d(inputs, joint, bias, padding=(kernel[0] // 2, kernel[1] // 2))

    bias = unit.context.bias
    assert bias is not None
    gates = whole(unit.gates.weight, unit.context.weight[:8], bias[:8], hidden).sigmoid()
    update, reset = gates.chunk(2, dim=1)
    proposal = whole(unit.proposal.weight, unit.context.weight[8:], bias[8:], reset * hidden).tanh()
    expected = (1 - update) * hidden + update * proposal
    torch.testing.assert_close(unit(hidden, unit.context(context), motion), expected)


def test_batch_norm_is_that_of_stored_statistics_in_training_too() -> None:
    norm = FrozenBatchNorm(3)
    norm.mean[:], norm.variance[:] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 9.0, 16.0])
    x = random(0, 2, 3, 4, 5)
    means, deviations = (torch.tensor(each).view(3, 1, 1) for each in ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]))
    torch.testing.assert_close(norm.train()(x), (x - means) / deviations)
    assert norm.mean.tolist() == [1.0, 2.0, 3.0]


@each_variant
def test_a_pair_s_flow_in_training_does_not_depend_on_its_batch(variant: str) -> None:
    network = fresh(variant).train()
    image1, image2 = random(0, 2, 3, 3, 32, 48)
    together, alone = network(image1, image2), network(image1[:1], image2[:1])
    for one, other in zip(together.forward + together.backward, alone.forward + alone.backward, strict=True):
        torch.testing.assert_close(one[:1], other, rtol=1e-4, atol=1e-4)


@each_variant
def test_raft_s_frozen_statistics_travel_with_its_weights(variant: str) -> None:
    network, other = fresh(variant), fresh(variant)
    for name, value in network.named_buffers():
        value += 1.0 if name.endswith("mean") else 0.5
    other.load_state_dict(network.state_dict())
    image1, image2 = random(0, 2, 1, 3, 32, 48)
    assert torch.equal(network(image1, image2).forward[0], other(image1, image2).forward[0])


@each_variant
def test_a_frame_of_one_vector_has_a_flow(variant: str) -> None:
    flow_fw, _ = fresh(variant).estimate(*random(0, 2, 1, 3, 3, 5))
    assert flow_fw.shape == (1, 2, 3, 5)
    assert flow_fw.isfinite().all()


def test_a_configuration_of_raft_is_read_with_its_variant() -> None:
    for config in full().values():
        assert from_dict(to_dict(config)) == config
    with pytest.raises(ValueError, match=re.escape("its variant is 'large'")):
        from_dict({**to_dict(RAFTConfig()), "variant": "large"})
