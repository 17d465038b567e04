"""How long are the steps of a training on a GPU, and how many pairs a second does a teacher label there?

    python -m benchmarks.speed.gpu [--quick]

Prints the milliseconds of a step of the teacher and of the student, each step on another batch that is on the
GPU already, replayed as training does and launched kernel by kernel; then those of our kernels; then pairs a
second of bare inference, and of the labels with all their columns. Everything is the network of the recipe
`video`, with random frames. Says so and ends where there is no GPU.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import torch

from benchmarks import report
from benchmarks.inputs import Lesson
from flowcore import networks
from flowcore.losses import Photometric
from flowcore.networks import PWCNetConfig
from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.objectives import Objective, StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.photometric import census_distance
from flowcore.pseudolabels import pseudo_labels
from pipelines.step import OptimiserStep
from pipelines.training_options import Precision, TrainingOptions

_WARM, _TIMED = 6, 20
_BATCHES = 4
FULL = networks.full()
STRIDE_4 = Photometric(full_resolution=False, clean=False, smoothness_weight=0.0)
"""As the steps were whose times the issue of the GPU began with."""


def _batch(pairs: int, height: int, width: int, margin: int, *, labelled: bool) -> Batch:
    scene1, scene2 = torch.rand(2, pairs, 3, height + 2 * margin, width + 2 * margin, device="cuda")
    inner = (..., slice(margin, margin + height), slice(margin, margin + width))
    batch = Batch(image1=scene1[inner].contiguous(), image2=scene2[inner].contiguous())
    if margin:
        inside = torch.ones_like(scene1[:, :1], dtype=torch.bool)
        batch = replace(batch, scene1=scene1, scene2=scene2, inside1=inside, inside2=inside)
    if labelled:
        flow = torch.randn(2, pairs, 2, height, width, device="cuda")
        trusted = torch.ones(pairs, 1, height, width, device="cuda")
        batch = replace(batch, flow_fw=flow[0], flow_bw=flow[1], confidence_fw=trusted, confidence_bw=trusted)
    return batch


def _milliseconds(work: Callable[[], object]) -> float:
    """Of one call, without the first ones."""
    for _ in range(_WARM):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_TIMED):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / _TIMED


def _step_milliseconds(
    config: networks.AnyNetworkConfig,
    objective: Objective,
    batches: list[Batch],
    precision: Precision,
    channels_last: bool,
    *,
    replayed: bool,
) -> float:
    torch.manual_seed(0)
    options = TrainingOptions(
        steps=1000,
        global_batch=len(batches[0].image1),
        precision=precision,
        channels_last=channels_last,
    )
    lessons = [Lesson(objective=objective)]
    step = OptimiserStep(
        config.build(), lessons, OcclusionCheck(), options, device=torch.device("cuda"), replayed=replayed
    )
    following = cycle(batches)
    return _milliseconds(lambda: step.take([next(following)]))


def steps(quick: bool) -> Iterator[tuple[str, ...]]:
    """Rows: what, its batch, precision, milliseconds replayed and launched, and the GPU's memory."""
    pwcnet = FULL["pwcnet"]
    assert isinstance(pwcnet, PWCNetConfig)
    plain = replace(pwcnet, refines=False, learned_upsampling=False)
    afresh = TeacherObjective(photometric=STRIDE_4)
    student = StudentObjective(view="confidence", photometric_weight=1.0)
    lower: tuple[Precision, bool] = ("bfloat16", True)
    cases: list[tuple[str, networks.AnyNetworkConfig, Objective, int, int, int, int, Precision, bool, bool]]
    cases = [
        ("teacher, PWC-Net, loss at stride 4", plain, afresh, 4, 320, 576, 0, *lower, True),
        ("teacher, PWC-Net, loss at stride 4", plain, afresh, 16, 320, 576, 0, *lower, False),
        ("teacher, PWC-Net", pwcnet, TeacherObjective(), 8, 256, 384, 32, "float32", False, False),
        ("teacher, PWC-Net", pwcnet, TeacherObjective(), 8, 256, 384, 32, "bfloat16", False, False),
        ("teacher, PWC-Net", pwcnet, TeacherObjective(), 8, 256, 384, 32, *lower, True),
        ("teacher, PWC-Net", pwcnet, TeacherObjective(), 16, 256, 384, 32, *lower, False),
        ("student, PWC-Net", pwcnet, student, 8, 192, 320, 32, *lower, False),
    ]
    if not quick:
        cases += [
            (f"teacher, {name}", FULL[name], TeacherObjective(), 8, 256, 384, 32, *lower, True)
            for name in FULL
            if name != "pwcnet"
        ]
    for name, config, objective, pairs, height, width, margin, precision, last, both in cases:
        labelled = isinstance(objective, StudentObjective)
        batches = [_batch(pairs, height, width, margin, labelled=labelled) for _ in range(_BATCHES)]
        torch.cuda.reset_peak_memory_stats()
        times = [
            f"{_step_milliseconds(config, objective, batches, precision, last, replayed=is_it):.1f}"
            for is_it in (True, False)[: 1 + both]
        ]
        memory = torch.cuda.max_memory_allocated() / 2**30
        layout = " channels last" if last else ""
        yield (
            *(name, str(pairs), f"{height}x{width}", precision + layout),
            *(times if both else [*times, ""]),
            f"{memory:.1f}",
        )


def kernels() -> Iterator[tuple[str, str]]:
    """Rows: a function of ours, milliseconds of both passes."""
    image1, image2 = torch.rand(2, 8, 3, 80, 144, device="cuda")
    image2.requires_grad_()
    features = torch.randn(2, 8, 32, 80, 144, device="cuda")
    first, second = (normalize_features(each).requires_grad_() for each in features)

    def census() -> None:
        torch.autograd.grad(census_distance(image1, image2).sum(), image2)

    def volume() -> None:
        torch.autograd.grad(cost_volume(first, second).sum(), (first, second))

    yield "census distance, 8x3x80x144", f"{_milliseconds(census):.2f}"
    yield "cost volume, 8x32x80x144", f"{_milliseconds(volume):.2f}"


@torch.no_grad()
def inference() -> Iterator[tuple[str, ...]]:
    """Rows: pairs at once, pairs a second bare and with the columns of a label."""
    network = FULL["pwcnet"].build().ready(torch.device("cuda"))
    check = OcclusionCheck()
    for pairs in (1, 4, 16):
        frames = torch.rand(pairs + 1, 3, 384, 640, device="cuda")
        bare = _milliseconds(lambda frames=frames: network.estimate_chunk(frames))  # type: ignore[misc]
        whole = _milliseconds(lambda frames=frames: pseudo_labels([network], frames, check))  # type: ignore[misc]
        yield str(pairs), *(f"{1000 * pairs / each:.0f}" for each in (bare, whole))


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="only PWC-Net's steps and the kernels")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured")
        return
    print(report.command())
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    heads = ["step", "batch", "px", "precision", "ms, replayed", "ms, launched", "GB"]
    print(report.head(heads, texts=4))
    for row in steps(arguments.quick):
        print(report.row(row), flush=True)
    print(f"\n{report.table(['kernels', 'ms'], kernels())}", flush=True)
    if not arguments.quick:
        heads = ["pairs of 384x640 px at once", "pairs/s, bare", "with a label's columns"]
        print(f"\n{report.table(heads, inference(), texts=0)}")


if __name__ == "__main__":
    main()
