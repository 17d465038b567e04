"""What does it save to store once a frame that two neighbours share?

    python -m benchmarks.speed.frames --labels FOLDER [--row-group-pairs 8 16 32 64]

Writes the shards of a label set anew: as they are, and backwards, where no pair begins with the frame that
the one before ends with, so that each has both of its frames. Prints for both the bytes of a pair, the CPU
time of writing it, and that of reading it back with both of its frames, not decoded.
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.cost import cpu_seconds
from pipelines.labels import encode_shard, with_second_frames
from pipelines.pair_set import PairSet, rows_of
from pipelines.shard_files import opened_shard

_ROUNDS = 3


def whole(location: str, file: str) -> pa.Table:
    """A shard's rows, each with both of its frames."""
    with opened_shard(location, file) as shard:
        groups = [shard.read(groups=[group]) for group in range(len(shard.group_pairs))]
    seconds = [
        row["image2"]
        for group in groups
        for row in with_second_frames(group.select(["pair_id", "image1", "image2"]).to_pylist())
    ]
    table = pa.concat_tables(groups).combine_chunks()
    field = table.schema.field("image2")
    return table.set_column(table.column_names.index("image2"), field, pa.array(seconds, field.type))


def written(tables: Sequence[pa.Table], size: int) -> list[bytes]:
    return [encode_shard(table, size) for table in tables]


def read(contents: Sequence[bytes]) -> None:
    """Every row, as `PairSet.read_group` reads it."""
    for content in contents:
        parquet = pq.ParquetFile(pa.BufferReader(content))
        for group in range(parquet.num_row_groups):
            rows_of(parquet.read_row_group(group))


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--labels", required=True, help="a finished label set of videos")
    parser.add_argument("--row-group-pairs", type=int, nargs="+", default=[8, 16, 32, 64], metavar="PAIRS")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    pairs = PairSet.open(arguments.labels)
    shards = [whole(pairs.location, file) for file in pairs.files]
    count = sum(map(len, shards))
    print(report.command())
    print(f"{count} pairs in {len(shards)} files\n")
    titles = ["pairs in a row group", "kB a pair", "both frames", "share"]
    titles += ["ms to write", "both frames", "ms to read", "both frames"]
    print(report.head(titles))
    # Backwards no pair begins with the frame that the one before ends with.
    backwards = [shard.take(pa.array(range(len(shard) - 1, -1, -1))) for shard in shards]
    for size in arguments.row_group_pairs:
        kilobytes, writing, reading = [], [], []
        for tables in (shards, backwards):
            contents = written(tables, size)
            kilobytes.append(sum(map(len, contents)) / count / 1e3)
            writing.append(1e3 * cpu_seconds(partial(written, tables, size), _ROUNDS) / count)
            reading.append(1e3 * cpu_seconds(partial(read, contents), _ROUNDS) / count)
        cells = [f"{each:.1f}" for each in kilobytes] + [f"{kilobytes[0] / kilobytes[1]:.2f}"]
        print(report.row([size, *cells, *(f"{each:.2f}" for each in (*writing, *reading))]), flush=True)


if __name__ == "__main__":
    main()
