"""Which pairs a filter keeps: the same as SQL does, read from no more columns than it needs."""

import pickle
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bare_graph import BareGraph
from hypothesis import given
from hypothesis import strategies as st

from jobs.command import run_training
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs import distill, finetune
from pipelines.collection import Collection
from pipelines.feed import Plan
from pipelines.filters import PairFilter
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.labels import LABEL_SCHEMA, PAIR_SCHEMA, encode_shard, pair_id
from pipelines.ledger import VideoRecord, write_manifest
from pipelines.pair_set import PairSet
from pipelines.set_description import SetDescription, describe_set
from pipelines.shard_files import shard_name
from pipelines.split import hold_back, part_of
from pipelines.storage import Folder
from pipelines.teachers import Teachers

SCHEMA = pa.schema([*PAIR_SCHEMA, *LABEL_SCHEMA])
QUALITY = ("occluded", "forward_backward", "photometric", "flow_p50", "flow_p99", "flow_max")
VALUES = (0, 0.1, 0.25, 0.3, 0.6, 1, 4, 7.5)
"""Few, so that pairs lie on a bound; most of them are no float32."""


def shard(video: str, quality: dict[str, list[float | None]]) -> pa.Table:
    """Pairs of a video, of one pixel each, with these quality columns."""
    count = len(next(iter(quality.values())))
    pixel = {"flow_fw": [64, 0], "flow_bw": [-64, 0], "flow_stride": 1, "occ_fw": [False], "occ_bw": [True]}
    size = {"stride": 1, "height": 1, "width": 1, "image1": b"1" * 99, "image2": b"2" * 99}
    rows = [
        {
            **pixel,
            **size,
            **dict.fromkeys(QUALITY, 0.5),
            "pair_id": pair_id(video, (frame, frame + 1), 1, 1, 1),
            "video": f"{video}.mp4",
            "frame": frame,
            "timestamp": frame / 4,
            "label_set": "made up",
            "teacher": "aa",
            **{name: values[frame] for name, values in quality.items()},
        }
        for frame in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_set(location: Path, shards: dict[str, pa.Table], row_group_pairs: int = 3) -> PairSet:
    made_of = {"teacher": {"digest": "aa"}}
    description = SetDescription(kind="labels", made_of=made_of, provenance={}, num_teachers=1)
    describe_set(str(location), description)
    videos = []
    for video, table in shards.items():
        Folder(str(location)).write(shard_name(video, 0), encode_shard(table, row_group_pairs))
        videos.append(VideoRecord(video=video, outcome="done", folder=video, pairs=len(table), shards=1))
    write_manifest(str(location), description.digest, videos)
    return PairSet.open(str(location))


def random_set(location: Path, values: tuple[float, ...]) -> PairSet:
    rng = np.random.default_rng(0)
    return write_set(
        location,
        {
            video: shard(video, {name: rng.choice(values, 13).tolist() for name in QUALITY})
            for video in ("a", "b", "c")
        },
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return random_set(tmp_path_factory.mktemp("measured"), VALUES)


@pytest.fixture(scope="module")
def with_nan(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return random_set(tmp_path_factory.mktemp("with_nan"), (*VALUES, float("nan")))


def kept(pairs: PairSet, text: str) -> list[str]:
    """The pair ids that the filter keeps, sorted; none where it keeps none."""
    try:
        return sorted(replace(pairs, where=PairFilter(text)).index()["pair_id"].to_pylist())
    except ValueError as error:
        if "keeps none" in str(error):
            return []
        raise


def kept_by_sql(source: str, text: str) -> list[str]:
    found = duckdb.sql(f"select pair_id from {source} where {text} order by pair_id").fetchall()
    return [each for (each,) in found]


def comparisons() -> st.SearchStrategy[str]:
    numbers = st.sampled_from([*(f"{value}" for value in VALUES), "-1", "-0.5", "0.30000001", "2", "1e9"])
    texts = st.sampled_from(["'a.mp4'", "'b.mp4'", "'b'", "''", "'Ünlü or not (x'"])
    sides = st.one_of(
        st.tuples(st.sampled_from([*QUALITY, "frame", "timestamp", "height"]), numbers),
        st.tuples(st.sampled_from(["video", "teacher", "pair_id"]), texts),
    )
    operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return st.builds(
        lambda side, compare, mirrored: f" {compare} ".join(side[::-1] if mirrored else side),
        sides,
        operators,
        st.booleans(),
    )


def joined(conditions: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        conditions.map("not {}".format),
        conditions.map("({})".format),
        conditions.map("not ({})".format),
        st.builds("{} {} {}".format, conditions, st.sampled_from(["and", "or"]), conditions),
    )


CONDITIONS = st.recursive(comparisons(), joined, max_leaves=6)


@given(text=CONDITIONS)
def test_a_filter_keeps_the_pairs_that_sql_keeps(measured: PairSet, text: str) -> None:
    assert kept(measured, text) == kept_by_sql(f"'{measured.location}/*/*.parquet'", text)


@pytest.fixture(scope="module")
def stored(with_nan: PairSet) -> pa.Table:
    columns = ["pair_id", "video", "teacher", "frame", "timestamp", "height", *QUALITY]
    return pa.concat_tables(
        pq.read_table(f"{with_nan.location}/{file}").select(columns) for file in with_nan.files
    )


@given(text=CONDITIONS)
def test_nan_is_above_every_number_as_in_sql(with_nan: PairSet, stored: pa.Table, text: str) -> None:
    """Against a table of DuckDB's own: reading Parquet it trusts statistics, which know nothing of nan."""
    with duckdb.connect() as database:
        database.register("stored", stored)
        database.execute("create table pairs as select * from stored")
        found = database.execute(f"select pair_id from pairs where {text} order by pair_id").fetchall()
    assert kept(with_nan, text) == [each for (each,) in found]


@given(text=CONDITIONS)
def test_a_filter_and_its_negation_share_the_pairs(with_nan: PairSet, text: str) -> None:
    both = kept(with_nan, text) + kept(with_nan, f"not ({text})")
    assert sorted(both) == sorted(with_nan.index()["pair_id"].to_pylist())


def test_a_chain_is_its_links(measured: PairSet) -> None:
    assert kept(measured, "0.1 <= occluded < 4 != occluded") == kept(
        measured, "0.1 <= occluded and occluded < 4 and 4 != occluded"
    )
    assert kept(measured, "not 0.1 < occluded < 4") == kept(measured, "occluded <= 0.1 or occluded >= 4")


def test_what_is_kept_stands_where_the_index_of_all_has_it(measured: PairSet) -> None:
    where = replace(measured, where=PairFilter("occluded < 0.6"))
    places = where.index().to_pylist()
    assert 0 < len(places) < where.num_pairs() == measured.index().num_rows == 39
    assert places == [
        place for place in measured.index().to_pylist() if measured.read(place)["occluded"] < np.float32(0.6)
    ]
    assert pickle.loads(pickle.dumps(where)).index() == where.index()


def zero_out(path: Path, needed: set[str]) -> None:
    """Overwrites the values of every column that isn't needed."""
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema not in needed:
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)


def test_no_other_column_is_read(tmp_path: Path) -> None:
    pairs = write_set(tmp_path, {"a": shard("a", {"occluded": [frame / 10 for frame in range(12)]})})
    text = "not occluded >= 0.35 and frame > 2"
    before = kept(pairs, text)
    assert before
    zero_out(tmp_path / "a" / "00000.parquet", {"pair_id", "height", "width", "occluded", "frame"})
    assert kept(pairs, text) == before
    with pytest.raises(ValueError, match="is damaged"):
        kept(pairs, "photometric < 4")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("occluded < 0.6 and", 18),
        ("occluded = 0.6", 9),
        ("occluded < 0.6 AND photometric < 4", 15),
        ("occluded < 0.6 and photometric", 19),
        ("video == 'ü' and occluded", 17),
        ("occluded < photometric", 11),
        ("1 < 2", 0),
        ("occluded in (1, 2)", 0),
        ("occluded is None", 0),
        ("occluded == None", 12),
        ("occluded < True", 11),
        ("occluded < 2 * 3", 11),
        ("occluded < 0x10", 11),
        ("occluded < 1e999", 11),
        ("occluded < --1", 11),
        ('video == "a"', 9),
        ("video == 'a' 'b'", 9),
        (r"video == 'a\n'", 9),
        ("__import__('os').system('true') == 0", 0),
        ("(lambda: 1)() < occluded", 0),
        ("", 0),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(text: str, place: int) -> None:
    with pytest.raises(
        ValueError, match=r"write comparisons of a column, such as occluded < 0\.6"
    ) as refusal:
        PairFilter(text)
    _, shown, pointer = str(refusal.value).split("\n")
    assert shown == f"  {text}"
    assert pointer.index("^") - 2 == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ocluded < 0.6", "no column 'ocluded' to compare; these pairs have pair_id, video, .* occluded, "),
        ("flow_fw < 0.6", "no column 'flow_fw' to compare"),
        ("image1 == 'a'", "no column 'image1' to compare"),
        ("video < 4", r"video can't be compared with 4\.0; give a text in single quotes"),
        ("occluded < 'a'", "occluded can't be compared with 'a'; give a number"),
        (
            "occluded > 9 and video != 'd'",
            r"keeps none of the 39 pairs of .*, in which occluded is 0\.0 to 7\.5; video is a\.mp4 to "
            r"c\.mp4; loosen it",
        ),
    ],
)
def test_a_filter_that_does_not_fit_the_set_says_what_would(
    measured: PairSet, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(measured, where=PairFilter(text)).index()


def test_a_null_is_an_error_wherever_it_is(tmp_path: Path) -> None:
    columns = {"occluded": [*[0.1] * 5, None], "photometric": [1.0] * 6}
    pairs = write_set(tmp_path, {"a": shard("a", columns)})
    for text in ("occluded < 0.5", "occluded > 0.5", "occluded < 0 and photometric < 4"):
        with pytest.raises(ValueError, match="occluded is null in 1 pairs"):
            kept(pairs, text)
    assert len(kept(pairs, "photometric < 4")) == 6


def test_what_is_planned_and_held_back_is_kept(measured: PairSet) -> None:
    where = replace(measured, where=PairFilter("occluded < 0.6 and photometric < 4"))
    ids = set(where.index()["pair_id"].to_pylist())
    training, validation = hold_back(where.index(), where.folders, share=0.2, most=3)
    assert set(training["pair_id"].to_pylist()) | set(validation["pair_id"].to_pylist()) <= ids
    assert training.num_rows > validation.num_rows > 0
    plan = Plan(index=part_of(training, 0.7), global_batch=2, seed=0)
    for window in plan.windows(0, 3 * plan.index.num_rows // 2, 0, 1):
        for file, group, row in zip(window["file"], window["row_group"], window["row"], strict=True):
            stored = where.read({"file": file, "row_group": group, "row": row})
            assert stored["occluded"] < np.float32(0.6)
            assert stored["photometric"] < 4


SCENE = SceneOptions(height=64, width=96, num_frames=9)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    folder = tmp_path_factory.mktemp("labelled")
    for seed in range(2):
        write_video(folder / "videos" / f"{seed}.mp4", render_scene(seed, SCENE).frames)
    options = LabellingOptions(row_group_pairs=2)
    check, clips = OcclusionCheck(), ClipOptions(chunk_pairs=3)
    teachers = Teachers.fetched(["opencv:dis_medium"])
    videos, location = Collection.find(str(folder / "videos")), str(folder / "labels")
    write_labels(videos, teachers, location, clips, check, options, graph=BareGraph())
    return PairSet.open(str(folder / "labels"))


def test_labels_that_a_teacher_wrote_are_filtered_as_sql_filters_them(labels: PairSet) -> None:
    source = f"'{labels.location}/*/*.parquet'"
    for column in QUALITY:
        ((median,),) = duckdb.sql(f"select median({column}) from {source}").fetchall()
        for text in (f"{column} <= {median:f}", f"not {column} < {median:f} or frame == 3"):
            assert kept(labels, text) == kept_by_sql(source, text) != []


def test_a_filter_without_labels_to_filter_is_refused() -> None:
    _, options = finetune.recipes()["smoke"]
    with pytest.raises(ValueError, match="give --labels too"):
        replace(options, where="frame < 3")


def test_a_command_line_with_a_wrong_filter_ends_before_anything_begins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run_training(
            distill.distill,
            distill.recipes(),
            "student",
            ["smoke", "--labels", "l", "--run-root", "r", "--where", "occluded <"],
        )
    assert end.value.code == 2
    assert "invalid syntax; write comparisons of a" in capsys.readouterr().err
