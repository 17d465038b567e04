"""What would a million hours of video take? Prints docs/explanation/scaling.md, with the arithmetic.

    python -m docs.make.scaling > docs/explanation/scaling.md

Measures what a pair costs on this machine, for rendered videos of the recipe `video`'s size: seconds of a
core to read, to write and to feed it, the bytes of its frames and of its labels, the operations of the
teacher and of a training step, and the driver's seconds for a file. Seconds are CPU time, so that other
processes on the machine hardly change them. All else is multiplied, with the assumptions that the page lists.
Takes about two minutes.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.cost import (
    GPU,
    cost_volume_operations,
    cpu_seconds,
    gpu_rate,
    student_gpu_rate,
    training_cost,
)
from benchmarks.inputs import true_pair
from benchmarks.report import table
from benchmarks.speed.planning import drive
from flowcore.chunks import ChunkReader
from flowcore.frame_codec import FrameCodec
from flowcore.networks import PWCNetConfig
from flowcore.objectives import StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import pseudo_labels
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.shapes import to_images
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model
from pipelines.label_rows import decode_flow, label_columns
from pipelines.labelling import LabellingOptions
from pipelines.labels import encode_shard
from pipelines.models import BEST, fetch_model
from pipelines.pair_set import row_values

HOURS, FRAME_RATE, VIDEO_BITS = 1e6, 30, 2.5e6
"""Of video; its frames and its bits a second."""
GPU_PRICE, CORE_PRICE, STORE_PRICE = 3.0, 0.05, 23.0
"""Dollars: an hour of a GPU, an hour of a core, a month of a TB."""
GPU_CORES, NODE_NETWORK = 16, 12.5e9
"""Cores beside each GPU; bytes a second of a node's network."""
GPUS = (8, 64, 512)
PRECISION = RECIPES["video"].teacher.precision
_HEIGHT, _WIDTH = 384, 640
_FRAMES = 33
_FILES = 1000


def per_pair() -> dict[str, float]:
    """What one pair costs: seconds of a core, bytes or operations, by name."""
    recipe, codec = RECIPES["video"], FrameCodec()
    scene = render_scene(0, SceneOptions(height=_HEIGHT, width=_WIDTH, num_frames=_FRAMES))
    pairs = _FRAMES - 1
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "video.mp4"
        write_video(path, scene.frames)
        stored: list[bytes] = []

        def read() -> None:
            for chunk in ChunkReader(str(path), recipe.clips):
                stored.extend(codec.encode(frame) for frame in chunk.frames)

        reading = cpu_seconds(read)
    # Labels of a trained network: what they take depends on what is in them.
    network, _ = load_model(fetch_model(BEST))
    some = scene.frames[: LabellingOptions().row_group_pairs + 1]
    labels = pseudo_labels([network.eval()], to_images(some), OcclusionCheck())
    flows = label_columns(labels, "a teacher").select(["flow_fw", "flow_bw", "occ_fw", "occ_bw"])
    content = encode_shard(flows, len(flows))

    def feed() -> None:
        table = pq.read_table(pa.BufferReader(content))
        for column in ("flow_fw", "flow_bw"):
            for row in row_values(table[column]):
                decode_flow(row, network.strides[0], _HEIGHT, _WIDTH)
        for frame in (*stored[: len(flows)], *stored[: len(flows)]):
            codec.decode(frame)

    config = recipe.network
    assert isinstance(config, PWCNetConfig)
    teacher = config.build().eval()
    with FlopCounterMode(display=False) as counter:
        teacher.estimate_chunk(to_images(some[:3]))
    # The formula is for both passes, which are three times one.
    forward = counter.get_total_flops() + cost_volume_operations(config, 2, _HEIGHT, _WIDTH) / 3
    learning = training_cost(
        true_pair(scene), config, recipe.augmentation, recipe.teacher, TeacherObjective()
    )
    step = training_cost(true_pair(scene), config, recipe.challenge, recipe.student, StudentObjective())
    return {
        "reading": reading / pairs,
        "writing": cpu_seconds(lambda: encode_shard(flows, len(flows))) / len(flows),
        "feeding": cpu_seconds(feed) / len(flows) + step.transforming / recipe.student.global_batch,
        "frame bytes": (1 + 1 / LabellingOptions().row_group_pairs) * float(np.mean(list(map(len, stored)))),
        "label bytes": len(content) / len(flows),
        "teacher": forward / 2,
        "student": step.operations / recipe.student.global_batch,
        "learning teacher": learning.operations / recipe.teacher.global_batch,
        "weights": 4.0 * sum(each.numel() for each in teacher.parameters()),
    }


def labels(pair: dict[str, float], gpu: float) -> str:
    rows = []
    for title, share in (("every pair", 1.0), ("a pair a second", 1 / FRAME_RATE)):
        pairs = HOURS * 3600 * FRAME_RATE * share
        # A decoder reads every frame of what it takes a pair of.
        cores = pairs * (pair["reading"] / share + pair["writing"]) / 3600
        hours, stored = pairs * gpu / 3600, pairs * (pair["frame bytes"] + pair["label bytes"])
        cost = hours * GPU_PRICE + max(0.0, cores - hours * GPU_CORES) * CORE_PRICE
        rows.append(
            (
                *(title, f"{pairs:.2g}", f"{stored / 1e15:.2g} PB", f"{hours:.2g}", f"{cores:.2g}"),
                *(f"{cost / 1e6:.2g} M$", f"{stored / 1e12 * STORE_PRICE / 1e6:.2g} M$ a month"),
            )
        )
    return table(["", "pairs", "label set", "GPU-hours", "core-hours", "computing", "keeping it"], rows)


def stages(pair: dict[str, float]) -> str:
    """What the whole chain takes: all pairs are labelled, and the recipe's steps are trained."""
    pairs = HOURS * 3600 * FRAME_RATE
    recipe = RECIPES["video"]
    learnt, distilled = (each.steps * each.global_batch for each in (recipe.teacher, recipe.student))
    rows = []
    for title, count, operations, core in (
        ("train the teacher", learnt, pair["learning teacher"], pair["feeding"]),
        ("label: decode, find cuts, encode frames", pairs, 0.0, pair["reading"]),
        ("label: the teacher", pairs, pair["teacher"], 0.0),
        ("label: write", pairs, 0.0, pair["writing"]),
        ("train the student", distilled, pair["student"], pair["feeding"]),
    ):
        if title == "train the student":
            rate = student_gpu_rate()
        else:
            rate = gpu_rate("float32" if title.startswith("label") else PRECISION)
        hours, cores = count * operations / rate / 3600, count * core / 3600
        # Cores beside a GPU come with it.
        cost = hours * GPU_PRICE + (0.0 if operations else cores * CORE_PRICE)
        rows.append((title, f"{count:.2g}", f"{hours:.2g}", f"{cores:.2g}", f"{cost:.2g} $"))
    return table(["stage", "pairs", "GPU-hours", "core-hours", "cost if nothing is shared"], rows)


def labelling(pair: dict[str, float], gpu: float, driver: float, shard: int) -> str:
    rows = []
    for count in GPUS:
        rate = count / gpu
        days = HOURS * 3600 * FRAME_RATE / rate / 86400
        cores = rate * (pair["reading"] + pair["writing"])
        size = pair["frame bytes"] + pair["label bytes"]
        rows.append(
            (
                *(f"{count}", f"{rate:.0f}", f"{days:.0f}", f"{cores:.0f}", f"{count * GPU_CORES}"),
                *(f"{rate / FRAME_RATE * VIDEO_BITS / 8e6:.0f} MB/s", f"{rate * size / 1e9:.2f} GB/s"),
                f"{rate / shard * driver:.0%}",
                _shortest(
                    cores=cores / (count * GPU_CORES),
                    network=rate * size / (count * NODE_NETWORK),
                    driver=rate / shard * driver,
                ),
            )
        )
    heads = ["GPUs", "pairs/s", "days", "cores it takes", "cores there", "video in", "labels out"]
    return table([*heads, "of the driver's core", "short first"], rows)


def _shortest(**shares: float) -> str:
    """What there is too little of, or the GPUs themselves."""
    name = max(shares, key=lambda each: shares[each])
    return name if shares[name] > 1 else "GPUs"


def student(pair: dict[str, float], global_batch: int) -> str:
    rows = []
    for count in (1, *GPUS):
        # As many pairs for each GPU as the recipe has in all; the gradient goes once around the ring.
        step = global_batch * pair["student"] / student_gpu_rate()
        sending = 2 * pair["weights"] * (count - 1) / count / NODE_NETWORK
        rate = count * global_batch / (step + sending)
        size = pair["frame bytes"] + pair["label bytes"]
        rows.append(
            (
                *(f"{count}", f"{1e3 * step:.0f} ms", f"{1e3 * sending:.1f} ms", f"{rate:.0f}"),
                *(f"{rate * pair['feeding']:.0f}", f"{rate * size / 1e9:.2f} GB/s"),
                _shortest(
                    cores=rate * pair["feeding"] / (count * GPU_CORES),
                    network=rate * size / (count * NODE_NETWORK),
                ),
            )
        )
    heads = ["GPUs", "a step", "its gradient sent", "pairs/s", "cores that feed", "labels in", "short first"]
    return table(heads, rows)


def main() -> None:
    report.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pair = per_pair()
    # Labels are made in float32.
    gpu, student_gpu = pair["teacher"] / gpu_rate("float32"), pair["student"] / student_gpu_rate()
    rates = [each / 1e12 for each in (gpu_rate(PRECISION), student_gpu_rate(), gpu_rate("float32"))]
    weights, many = pair["weights"] / 4e6, GPUS[-1]
    shard, global_batch = RECIPES["video"].labelling.shard_pairs, RECIPES["video"].student.global_batch
    driver = drive(_FILES, shard).seconds
    cores = many / gpu / shard * driver
    costs = [
        ("reading: decode, find cuts, encode the frame", f"{1e3 * pair['reading']:.1f} ms of a core"),
        ("teacher, both directions", f"{pair['teacher'] / 1e9:.0f} GFLOP: {1e3 * gpu:.1f} ms of an {GPU}"),
        ("writing", f"{1e3 * pair['writing']:.1f} ms of a core"),
        ("stored: a frame, and the last one of each row group", f"{pair['frame bytes'] / 1e3:.0f} kB"),
        ("stored: flow both ways, masks", f"{pair['label bytes'] / 1e3:.0f} kB"),
        ("feeding: read, decode, transform", f"{1e3 * pair['feeding']:.1f} ms of a core"),
        ("student, its part of a step", f"{pair['student'] / 1e9:.0f} GFLOP: {1e3 * student_gpu:.1f} ms"),
        (f"driver, for a file of {shard} pairs", f"{1e3 * driver:.1f} ms of its core"),
    ]
    print(
        f"""# A million hours of video, on paper

Printed by `python -m docs.make.scaling`. Nothing of it ran at this scale. Measured are what a pair costs
one core, for rendered videos of {_HEIGHT}x{_WIDTH} px and the network of the recipe `video`, and one step of
each training on an {GPU} ([speed](../results/speed.md#on-a-gpu)). All else is multiplied from these, the
teacher's labels too.

{table(["a pair", "costs"], costs)}

## Labels

{labels(pair, gpu)}

Every pair, and the training of the recipe `video`, by stage:

{stages(pair)}

Every pair, by GPUs:

{labelling(pair, gpu, driver, shard)}

## The student

{student(pair, global_batch)}

## What is short first, and what the design does about it

- **The store.** It keeps frames, JPEG of quality {FrameCodec().quality}, and flow at half of their size.
  So a set is a sample: `--clips.max-pairs-per-video` and `--clips.stride` take
  few pairs of many videos, which teach more than all pairs of few. Then reading is what costs, as a decoder
  goes through what it skips.
- **Cores.** Where more are asked for than are beside the GPUs, CPU nodes decode: readers are tasks of their
  own, on any node, and a spot node that goes costs the chunks in work (`ray_cluster.yaml`).
- **The driver.** It holds no pair, and some hundred bytes a video (`docs/results/labels.md`), but starts
  every task: with files of {shard} pairs, one core is enough for {shard / driver:,.0f} pairs a second, and
  the labels of {many} GPUs take {cores:.1f} cores. Beyond one, split the list of videos: several runs into
  several folders share nothing.
- **The gradient** of {weights:.1f} million weights is sent while the backward pass still goes on (DDP). What
  suffers first is the recipe: {global_batch} pairs a GPU are a batch of {many * global_batch} at {many} GPUs.
- **A lost node** costs training the steps since its last checkpoint, or since the notice where there is one,
  and labelling the files in work.

Assumed:

- {HOURS:.0e} hours of {FRAME_RATE} frames and {VIDEO_BITS / 1e6:g} Mbit a second;
- {GPU} at {rates[0]:.0f} TFLOP/s in {PRECISION} for the teacher's training, {rates[1]:.0f} for the student's
  and {rates[2]:.0f} in float32 for labels, as in the steps that were measured;
- {GPU_CORES} cores and {NODE_NETWORK / 1e9:g} GB/s of network beside each GPU;
- {GPU_PRICE:g} $ for an hour of a GPU with its cores, {CORE_PRICE:g} $ for one of a further core;
- {STORE_PRICE:g} $ for a TB a month.

Real videos are decoded from larger frames than rendered ones and are noisier, so reading and the frames'
bytes are low here."""
    )


if __name__ == "__main__":
    main()
