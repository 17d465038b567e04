"""What do our own gradients save, and what do the options save that make a training step cheaper?

    python -m benchmarks.speed.step [--compiled]

Compares the census distance, the cost volume, the warp and a whole step of the teacher with the same written
straightforwardly for autograd. The straightforward forms hold every offset of a patch and every displacement
as a channel, and encode each frame once for each direction. Then compares the step by what its loss is made
of, and a teacher's step of PWC-Net and of RAFT with the same under each of --training.accumulate,
--training.precision, --training.channels-last, --training.checkpoint-activations and --training.compiled.

All forms of one loss must agree in value and gradient before any is timed. Prints the milliseconds of each,
forward and backward together, and its peak memory above what was held before (Linux only); then the share of
a step that goes into convolutions, which every form has. --compiled adds what torch.compile makes of the
straightforward forms and of the networks; this takes some minutes and a C++ compiler.
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import report
from flowcore import photometric
from flowcore.geometry import backward_warp, pixel_grid
from flowcore.losses import Photometric
from flowcore.networks import BidirectionalFlow, Estimator, FlowNetwork
from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.objectives import TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.photometric import census_border, census_distance, grey
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from jobs.recipes import RECIPES
from pipelines.step import global_facts, global_loss

_ROUNDS = 9
_PAIRS, _HEIGHT, _WIDTH = 4, 192, 256


def plain_census(image1: Tensor, image2: Tensor) -> Tensor:
    """As census_distance."""
    signatures = []
    for image in (image1, image2):
        centre = grey(image)
        batch, _, height, width = centre.shape
        patches = functional.unfold(centre, 7, padding=3).view(batch, 49, height, width)
        difference = patches - centre
        signatures.append(difference / (0.81 + difference**2).sqrt())
    mismatch = (signatures[0] - signatures[1]) ** 2
    distance = (mismatch / (0.1 + mismatch)).sum(dim=1, keepdim=True)
    return distance.masked_fill(census_border(image1), 0.0)


def plain_cost_volume(features1: Tensor, features2: Tensor, radius: int = 4) -> Tensor:
    """As cost_volume."""
    height, width = features1.shape[-2:]
    padded = functional.pad(features2, (radius,) * 4)
    side = 2 * radius + 1
    slices = [
        (features1 * padded[..., dy : dy + height, dx : dx + width]).sum(dim=1)
        for dy in range(side)
        for dx in range(side)
    ]
    return torch.stack(slices, dim=1)


def plain_warp(image: Tensor, flow: Tensor) -> Tensor:
    """As backward_warp, but for what isn't finite."""
    height, width = image.shape[-2:]
    x, y = (pixel_grid(height, width) + flow).unbind(dim=1)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def plain_estimate(network: FlowNetwork, image1: Tensor, image2: Tensor) -> BidirectionalFlow:
    """As the network's own, one direction after the other."""
    return BidirectionalFlow(
        forward=network.decode(network.encode(image1), network.encode(image2)),
        backward=network.decode(network.encode(image2), network.encode(image1)),
        strides=network.strides,
    )


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to compute something: a scalar, and then the gradients of `inputs`."""

    name: str
    loss: Callable[[], Tensor]
    inputs: Sequence[Tensor]
    tolerance: float = 1e-3
    """How far its value and gradient may be from the first form's, relative to their length."""
    in_parts: Callable[[], Iterator[Tensor]] | None = None
    """The same scalar as summands, each differentiated before the next is made."""

    def run(self) -> list[Tensor]:
        sums: list[Tensor] = []
        for loss in [self.loss()] if self.in_parts is None else self.in_parts():
            values = [loss.detach(), *torch.autograd.grad(loss, self.inputs)]
            sums = [one + two for one, two in zip(sums, values, strict=True)] if sums else values
        return sums


def function_forms(
    function: Callable[..., Tensor], plain: Callable[..., Tensor], compiled: bool, *inputs: Tensor
) -> list[Form]:
    for each in inputs:
        each.requires_grad_()
    # A gradient that differs from pixel to pixel.
    weights = torch.rand_like(function(*inputs).detach())

    def loss(form: Callable[..., Tensor]) -> Tensor:
        return (form(*inputs) * weights).mean()

    forms = {"ours": function, "plain": plain}
    if compiled:
        forms["compiled"] = torch.compile(plain)
    return [Form(name=name, loss=partial(loss, form), inputs=inputs) for name, form in forms.items()]


def step_forms(batch: Batch, compiled: bool) -> list[Form]:
    network = RECIPES["demo"].networks["pwcnet"].build()
    objective = TeacherObjective()

    def loss(estimate: Estimator, *replaced: Callable[..., Tensor]) -> Tensor:
        with ExitStack() as stack:
            for place, function in zip(
                ("networks.pwcnet.cost_volume", "networks.pwcnet.backward_warp", "objectives.backward_warp"),
                replaced[1:],
                strict=False,
            ):
                stack.enter_context(mock.patch(f"flowcore.{place}", function))
            if replaced:
                census = {"census": (replaced[0], photometric.PATCH_RADIUS)}
                stack.enter_context(mock.patch.dict(photometric.DISTANCES, census))
            outcome = objective(estimate, batch, step=0, check=OcclusionCheck())
            return global_loss(outcome, global_facts(outcome, 1, _PAIRS)[0], 1)

    plain = partial(plain_estimate, network)
    functions = (plain_census, plain_cost_volume, plain_warp, plain_warp)
    parts: dict[str, Callable[[], Tensor]] = {
        "ours": partial(loss, network),
        "plain": partial(loss, plain, *functions),
    }
    if compiled:
        # With our cost volume: compiled by torch 2.13 inside a network, the straightforward one's gradient is
        # another, by 0.6 of its length.
        compiled_functions = (torch.compile(plain_census), cost_volume, *functions[2:])
        parts["compiled"] = partial(loss, torch.compile(plain), *compiled_functions)
    inputs = list(network.parameters())
    return [Form(name=name, loss=part, inputs=inputs) for name, part in parts.items()]


def loss_forms(batch: Batch) -> list[Form]:
    """A step of the demo's teacher with the loss level by level, as it was, and with what was added."""
    network = RECIPES["demo"].networks["pwcnet"].build()

    def loss(objective: TeacherObjective) -> Tensor:
        outcome = objective(network, batch, step=0, check=OcclusionCheck())
        return global_loss(outcome, global_facts(outcome, 1, _PAIRS)[0], 1)

    losses = {
        "level by level": Photometric(full_resolution=False, smoothness_weight=0.0),
        "at full resolution": Photometric(smoothness_weight=0.0),
        "and smoothness": Photometric(),
    }
    return [
        Form(
            name=name,
            loss=partial(loss, TeacherObjective(photometric=photometric)),
            inputs=list(network.parameters()),
            # Another loss has other values.
            tolerance=math.inf,
        )
        for name, photometric in losses.items()
    ]


def option_forms(network: FlowNetwork, batch: Batch, compiled: bool) -> list[Form]:
    """A step of the teacher with each option of TrainingOptions that makes it cheaper."""
    objective = partial(TeacherObjective(unmasked_steps=1), step=0, check=OcclusionCheck())
    inputs = list(network.parameters())

    def loss(
        estimate: Estimator,
        *,
        precision: torch.dtype = torch.float32,
        again: bool = False,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        cast(Any, network).to(memory_format=layout)
        network.checkpoints_activations = again

        def in_precision(image1: Tensor, image2: Tensor) -> BidirectionalFlow:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                return estimate(image1, image2)

        outcome = objective(in_precision, batch)
        return global_loss(outcome, global_facts(outcome, 1, len(batch.image1))[0], 1)

    def in_two_parts() -> Iterator[Tensor]:
        cast(Any, network).to(memory_format=torch.contiguous_format)
        network.checkpoints_activations = False
        parts = batch.split(2)
        with torch.no_grad():
            whole = reduce(add, (objective(network, part) for part in parts))
        counts, _ = global_facts(whole, 1, len(batch.image1))
        for part in parts:
            yield global_loss(objective(network, part), counts, 1)

    ours = partial(loss, network)
    forms = [
        Form(name="plain", loss=ours, inputs=inputs),
        Form(
            name="channels last",
            loss=partial(ours, layout=torch.channels_last),
            inputs=inputs,
            tolerance=1e-2,
        ),
        Form(name="checkpointed", loss=partial(ours, again=True), inputs=inputs),
        Form(name="two parts", loss=ours, inputs=inputs, in_parts=in_two_parts),
        Form(name="bfloat16", loss=partial(ours, precision=torch.bfloat16), inputs=inputs, tolerance=0.5),
    ]
    if compiled:
        made = cast(FlowNetwork, torch.compile(network))
        forms.append(Form(name="compiled", loss=partial(loss, made), inputs=inputs, tolerance=1e-2))
    return forms


def share_of_convolutions(form: Form) -> float:
    """The share of a run that goes into convolutions, both passes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        form.run()
    events = profile.key_averages()
    names = (
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
        "aten::thnn_conv2d",
        "aten::_slow_conv2d",
    )
    convolutions = sum(each.cpu_time_total for each in events if each.key.startswith(names))
    return float(convolutions / sum(each.self_cpu_time_total for each in events))


def peak_megabytes(form: Form) -> float:
    """What the form holds at its highest, above what was held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    form.run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _distance(expected: Sequence[Tensor], values: Sequence[Tensor]) -> float:
    """Of all values together, relative to their length."""
    mine, its = (torch.cat([each.flatten() for each in several]) for several in (expected, values))
    return float((mine - its).norm() / mine.norm())


def compare(title: str, forms: Sequence[Form]) -> str:
    """A row of the table for each form; AssertionError where their values differ."""
    expected, *others = [form.run() for form in forms]
    for other, form in zip(others, forms[1:], strict=True):
        error = max(_distance(expected[:1], other[:1]), _distance(expected[1:], other[1:]))
        assert error <= form.tolerance, f"{title}, {form.name}: {error:.1e} from the values of the first"
    del expected, others
    seconds: dict[str, list[float]] = {form.name: [] for form in forms}
    for _ in range(_ROUNDS):
        for form in forms:
            start = time.perf_counter()
            form.run()
            seconds[form.name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    first = forms[0].name
    peaks = {form.name: peak_megabytes(form) for form in forms}
    rows = [
        (
            title,
            name,
            f"{1000 * medians[name]:.1f}",
            f"{medians[name] / medians[first]:.2f}",
            f"{peaks[name]:.0f}",
            f"{peaks[name] / max(peaks[first], 1e-9):.1f}",
        )
        for name in medians
    ]
    return "\n".join(map(report.row, rows))


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--compiled", action="store_true", help="compare compiled forms, too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    options = SceneOptions(height=_HEIGHT, width=_WIDTH, num_frames=2)
    scenes = [render_scene(seed, options) for seed in range(_PAIRS)]
    image1, image2 = (torch.cat([to_images(scene.frames[at : at + 1]) for scene in scenes]) for at in (0, 1))
    flow = torch.cat([torch.from_numpy(scene.flow_fw[:1]).float() for scene in scenes])
    features1, features2 = (
        normalize_features(torch.randn(2 * _PAIRS, 32, _HEIGHT // 4, _WIDTH // 4)) for _ in range(2)
    )
    networks = RECIPES["demo"].networks
    print(f"{_PAIRS} pairs of {_HEIGHT}x{_WIDTH} px, {torch.get_num_threads()} threads")
    print(report.head(["", "form", "ms", "times the first", "peak MB", "times the first"], texts=2))
    batch = Batch(image1=image1.clone(), image2=image2.clone())
    for title, forms in (
        (
            "census distance",
            function_forms(census_distance, plain_census, arguments.compiled, image1, image2),
        ),
        (
            "cost volume, 32 channels at stride 4",
            function_forms(cost_volume, plain_cost_volume, arguments.compiled, features1, features2),
        ),
        ("warp", function_forms(backward_warp, plain_warp, arguments.compiled, image2, flow)),
        ("step of the demo's teacher", whole := step_forms(batch, arguments.compiled)),
        ("the same, by its loss", loss_forms(batch)),
        *(
            (f"step of {name}", option_forms(network.build(), batch, arguments.compiled))
            for name, network in (
                ("the demo's PWC-Net", networks["pwcnet"]),
                ("the demo's RAFT", networks["raft"]),
            )
        ),
    ):
        print(compare(title, forms), flush=True)
    print(f"convolutions take {share_of_convolutions(whole[0]):.0%} of our step of the demo's teacher")


if __name__ == "__main__":
    main()
