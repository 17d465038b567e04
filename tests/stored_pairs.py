"""A label set of made-up pairs, written as a finished one is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from flowcore.frame_codec import FrameCodec
from flowcore.pseudolabels import label_grid
from pipelines.label_rows import masks, quantized
from pipelines.labels import LABEL_SCHEMA, PAIR_SCHEMA, encode_shard, pair_id
from pipelines.ledger import VIDEO_FILE, VideoRecord, write_manifest
from pipelines.set_description import SetDescription, describe_set
from pipelines.shard_files import shard_name
from pipelines.storage import Folder

DESCRIPTION = SetDescription(
    kind="labels",
    num_teachers=1,
    made_of={"clips": {"size": (48, 64), "stride": 1}, "teacher": {"digest": "aa"}},
    provenance={"teacher": "x"},
)


def shard(
    num_pairs: int, height: int, width: int, stride: int, video: str = "v"
) -> tuple[pa.Table, torch.Tensor]:
    """Pairs of a video, and the flows on their grid, [2 directions, pairs, 2, rows, columns]."""
    rng = np.random.default_rng((num_pairs, height, width, stride))
    grid = torch.from_numpy(
        rng.normal(0, 30, (2, num_pairs, 2, *label_grid(height, width, stride))).astype(np.float32)
    )
    occluded = torch.from_numpy(rng.random((2, num_pairs, 1, height, width)) < 0.3)
    images = [
        FrameCodec("png").encode(image) for image in rng.integers(0, 256, (2, height, width, 3), np.uint8)
    ]
    values = {
        "pair_id": [pair_id(video, (i, i + 1), 1, height, width) for i in range(num_pairs)],
        "video": [video] * num_pairs,
        "frame": range(num_pairs),
        "stride": [1] * num_pairs,
        "timestamp": [i / 25 for i in range(num_pairs)],
        "height": [height] * num_pairs,
        "width": [width] * num_pairs,
        "image1": [images[0]] * num_pairs,
        "image2": [images[1]] * num_pairs,
        "label_set": [DESCRIPTION.digest] * num_pairs,
        "flow_fw": quantized(grid[0]),
        "flow_bw": quantized(grid[1]),
        "flow_stride": [stride] * num_pairs,
        "occ_fw": masks(occluded[0]),
        "occ_bw": masks(occluded[1]),
        **{name: [0.5] * num_pairs for name in LABEL_SCHEMA.names[5:11]},
        "teacher": ["aa"] * num_pairs,
    }
    schema = pa.schema([*PAIR_SCHEMA, *LABEL_SCHEMA])
    return pa.table({name: pa.array(values[name], schema.field(name).type) for name in values}).cast(
        schema
    ), grid


def write_set(location: Path, shards: dict[str, list[pa.Table]], row_group_pairs: int = 3) -> None:
    describe_set(str(location), DESCRIPTION)
    folder = Folder(str(location))
    videos = []
    for video, tables in shards.items():
        for number, table in enumerate(tables):
            folder.write(shard_name(video, number), encode_shard(table, row_group_pairs))
        folder.write(f"{video}/{VIDEO_FILE}", b"{}")
        pairs = sum(len(table) for table in tables)
        videos.append(
            VideoRecord(video=video, outcome="done", folder=video, pairs=pairs, shards=len(tables), bytes=1)
        )
    write_manifest(str(location), DESCRIPTION.digest, videos)
