"""How long are the steps of a training on a GPU, and how many pairs a second does a teacher label there?

    python -m benchmarks.speed.gpu [--quick] [--device cpu]

Prints the milliseconds of a step of the teacher and of the student, each step on another batch that is on the
GPU already, replayed as training does and launched kernel by kernel; then those of our kernels; then pairs a
second of bare inference, and of the labels with all their columns. Everything is the network of the recipe
`video`, with random frames. Says so and ends where there is no GPU.

A step's floor is the longer of two times: its operations, at the rate of a large product of matrices in that
precision, and writing and reading once what it keeps between its passes, at the rate of a copy. Both rates
are measured first. Operations are those of convolutions and of products, as counted, and of PWC-Net's cost
volumes, by formula.

With `--device cpu` the same tables are made on a CPU, of the small networks, one pair a step and frames of
64x128 px. They show that the script runs and how the columns compare; a CPU replays nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import cycle

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.cost import cost_volume_operations
from benchmarks.inputs import Lesson
from flowcore import networks
from flowcore.losses import Photometric
from flowcore.networks import FlowNetwork, PWCNetConfig
from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.objectives import Objective, StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.photometric import census_distance
from flowcore.pseudolabels import pseudo_labels
from pipelines.label_rows import label_columns
from pipelines.step import OptimiserStep
from pipelines.training_options import Precision, TrainingOptions

_BATCHES = 4
STRIDE_4 = Photometric(full_resolution=False, clean=False, smoothness_weight=0.0)
"""As the steps were whose times the issue of the GPU began with."""


@dataclass(frozen=True)
class Case:
    """A step that is timed."""

    name: str
    config: networks.AnyNetworkConfig
    objective: Objective
    pairs: int
    height: int
    width: int
    margin: int = 32
    precision: Precision = "bfloat16"
    channels_last: bool = True
    both: bool = False
    """Whether it is also launched kernel by kernel, where there are kernels."""


@dataclass(frozen=True)
class Bench:
    """The device, and how often what runs there is timed."""

    device: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def networks(self) -> dict[str, networks.AnyNetworkConfig]:
        return networks.full() if self.is_gpu else networks.small()

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Of one call, without the first ones."""
        warm, timed = (6, 20) if self.is_gpu else (1, 2)
        for _ in range(warm):
            work()
        self._wait()
        started = time.perf_counter()
        for _ in range(timed):
            work()
        self._wait()
        return 1000 * (time.perf_counter() - started) / timed

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    @cached_property
    def operations_a_second(self) -> dict[Precision, float]:
        """Of a product of matrices, with TF32 where convolutions take it."""
        side = 8192 if self.is_gpu else 512
        matrix = torch.rand(side, side, device=self.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        precise = self.milliseconds(partial(torch.mm, matrix, matrix))
        torch.backends.cuda.matmul.allow_tf32 = False
        lower = self.milliseconds(partial(torch.mm, matrix.bfloat16(), matrix.bfloat16()))
        return {"float32": 2000 * side**3 / precise, "bfloat16": 2000 * side**3 / lower}

    @cached_property
    def bytes_a_second(self) -> float:
        """Written and read, of a copy."""
        values = torch.rand((1 << 30 if self.is_gpu else 1 << 26) // 4, device=self.device)
        return 2000 * values.nbytes / self.milliseconds(values.clone)

    def batch(self, pairs: int, height: int, width: int, margin: int, *, labelled: bool) -> Batch:
        whole = (2, pairs, 3, height + 2 * margin, width + 2 * margin)
        scene1, scene2 = torch.rand(whole, device=self.device)
        inner = (..., slice(margin, margin + height), slice(margin, margin + width))
        batch = Batch(image1=scene1[inner].contiguous(), image2=scene2[inner].contiguous())
        if margin:
            inside = torch.ones_like(scene1[:, :1], dtype=torch.bool)
            batch = replace(batch, scene1=scene1, scene2=scene2, inside1=inside, inside2=inside)
        if labelled:
            flow = torch.randn(2, pairs, 2, height, width, device=self.device)
            sure = torch.ones(pairs, 1, height, width, device=self.device)
            batch = replace(batch, flow_fw=flow[0], flow_bw=flow[1], confidence_fw=sure, confidence_bw=sure)
        return batch

    def step(self, case: Case, *, replayed: bool) -> OptimiserStep:
        torch.manual_seed(0)
        options = TrainingOptions(
            steps=1000,
            global_batch=case.pairs,
            precision=case.precision,
            channels_last=case.channels_last,
        )
        lessons = [Lesson(objective=case.objective)]
        network, check = case.config.build(), OcclusionCheck()
        return OptimiserStep(network, lessons, check, options, device=self.device, replayed=replayed)

    def floor(self, case: Case, batch: Batch) -> float:
        """Milliseconds."""
        step, kept = self.step(case, replayed=False), dict[int, int]()

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        kept_by_autograd = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with kept_by_autograd, FlopCounterMode(display=False) as counter:
            step.take([batch])
        operations = float(counter.get_total_flops())
        if isinstance(case.config, PWCNetConfig):
            operations += cost_volume_operations(case.config, case.pairs, case.height, case.width)
        arithmetic = operations / self.operations_a_second[case.precision]
        return 1000 * max(arithmetic, 2 * sum(kept.values()) / self.bytes_a_second)


def cases(sizes: Mapping[str, networks.AnyNetworkConfig], quick: bool) -> list[Case]:
    pwcnet = sizes["pwcnet"]
    assert isinstance(pwcnet, PWCNetConfig)
    plain = replace(pwcnet, refines=False, learned_upsampling=False)
    teacher, afresh = TeacherObjective(), TeacherObjective(photometric=STRIDE_4)
    student = StudentObjective(view="confidence", photometric_weight=1.0)
    at_stride_4 = Case("teacher, PWC-Net, loss at stride 4", plain, afresh, 4, 320, 576, margin=0, both=True)
    usual = Case("teacher, PWC-Net", pwcnet, teacher, 8, 256, 384, both=True)
    found = [
        at_stride_4,
        replace(at_stride_4, pairs=16, both=False),
        replace(usual, precision="float32", channels_last=False, both=False),
        replace(usual, channels_last=False, both=False),
        usual,
        replace(usual, pairs=16, both=False),
        Case("student, PWC-Net", pwcnet, student, 8, 192, 320),
    ]
    if not quick:
        others = ((name, config) for name, config in sizes.items() if name != "pwcnet")
        found += [replace(usual, name=f"teacher, {name}", config=config) for name, config in others]
    return found


def steps(bench: Bench, quick: bool) -> Iterator[tuple[str, ...]]:
    """Rows: what, its batch, precision, milliseconds replayed, launched and at least, and the GPU's
    memory."""
    for full in cases(bench.networks, quick):
        case = full if bench.is_gpu else replace(full, pairs=1, height=64, width=128)
        labelled = isinstance(case.objective, StudentObjective)
        size = (case.pairs, case.height, case.width, case.margin)
        batches = [bench.batch(*size, labelled=labelled) for _ in range(_BATCHES)]
        if bench.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = {}
        for replayed in (True, False):
            if replayed == bench.is_gpu or (case.both and bench.is_gpu):
                step, following = bench.step(case, replayed=replayed), cycle(batches)
                take = partial(_take_next, step, following)
                times[replayed] = f"{bench.milliseconds(take):.1f}"
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if bench.is_gpu else ""
        layout = " channels last" if case.channels_last else ""
        yield (
            *(case.name, str(case.pairs), f"{case.height}x{case.width}", case.precision + layout),
            *(times.get(replayed, "") for replayed in (True, False)),
            *(f"{bench.floor(case, batches[0]):.1f}", memory),
        )


def _take_next(step: OptimiserStep, batches: Iterator[Batch]) -> None:
    step.take([next(batches)])


def kernels(bench: Bench) -> Iterator[tuple[str, str]]:
    """Rows: a function of ours, milliseconds of both passes."""
    size = (80, 144) if bench.is_gpu else (40, 72)
    image1, image2 = torch.rand(2, 8, 3, *size, device=bench.device)
    image2.requires_grad_()
    features = torch.randn(2, 8, 32, *size, device=bench.device)
    first, second = (normalize_features(each).requires_grad_() for each in features)

    def census() -> None:
        torch.autograd.grad(census_distance(image1, image2).sum(), image2)

    def volume() -> None:
        torch.autograd.grad(cost_volume(first, second).sum(), (first, second))

    for name, channels, work in (("census distance", 3, census), ("cost volume", 32, volume)):
        yield f"{name}, 8x{channels}x{size[0]}x{size[1]}", f"{bench.milliseconds(work):.2f}"


@torch.no_grad()
def inference(bench: Bench, size: tuple[int, int]) -> Iterator[tuple[str, ...]]:
    """Rows: pairs at once, pairs a second bare and with the columns of a label, and their ratio."""
    built = bench.networks["pwcnet"].build()
    # A fresh network's flow is too long for a label.
    built.load_state_dict({name: 0.5 * value for name, value in built.state_dict().items()})
    network = built.ready(bench.device)
    for pairs in (1, 4, 16) if bench.is_gpu else (1, 4):
        frames = torch.rand(pairs + 1, 3, *size, device=bench.device)
        bare = bench.milliseconds(partial(network.estimate_chunk, frames))
        whole = bench.milliseconds(partial(_columns, network, frames))
        yield str(pairs), *(f"{1000 * pairs / each:.0f}" for each in (bare, whole)), f"{bare / whole:.2f}"


def _columns(network: FlowNetwork, frames: Tensor) -> None:
    label_columns(pseudo_labels([network], frames, OcclusionCheck()).cpu(), "a teacher")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="only PWC-Net's steps and the kernels")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda by default")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured; --device cpu makes the tables on a CPU")
        return
    bench = Bench(torch.device(arguments.device))
    name = torch.cuda.get_device_name() if bench.is_gpu else f"{torch.get_num_threads()} threads of a CPU"
    print(report.command())
    print(f"\n{name}, torch {torch.__version__}\n")
    heads = ["step", "batch", "px", "precision", "ms, replayed", "ms, launched", "ms, floor", "GB"]
    print(report.head(heads, texts=4))
    for row in steps(bench, arguments.quick):
        print(report.row(row), flush=True)
    print(f"\n{report.table(['kernels', 'ms'], kernels(bench))}", flush=True)
    if not arguments.quick:
        height, width = size = (384, 640) if bench.is_gpu else (96, 160)
        heads = [f"pairs of {height}x{width} px at once", "pairs/s, bare", "with a label's columns", "ratio"]
        print(f"\n{report.table(heads, inference(bench, size), texts=0)}")


if __name__ == "__main__":
    main()
