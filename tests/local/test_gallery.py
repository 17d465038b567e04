"""The page about a label set: what it shows is what the set holds, and it is a page whatever a name holds."""

import base64
import contextlib
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bare_graph import BareGraph
from mlflow.entities import Run

from jobs.command import run
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs.gallery import Gallery, main
from pipelines import tracking
from pipelines.collection import Collection
from pipelines.gallery import gallery_page
from pipelines.grades import GalleryOptions, GradedSet, choose
from pipelines.labelling import LabellingOptions, write_labels, write_pairs
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet
from pipelines.teachers import Teachers

CLIPS = ClipOptions(chunk_pairs=3)
OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2, max_bad_share=0.7)
HOSTILE = """<img src=x onerror=alert(1)>&amp;"'.mp4"""
HOSTILE_BROKEN = '"><script>alert(2)</script>'.replace("/", "\u2044") + ".mp4"
PAIRS = {"a.mp4": 8, HOSTILE: 6}


def render(path: Path, seed: int, num_frames: int) -> None:
    options = SceneOptions(height=48, width=64, num_frames=num_frames, camera_speed=3.0, layer_speed=2.0)
    write_video(path, render_scene(seed, options).frames)


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two good videos, a copy and a broken one; and of another collection one of these and one of its own."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    render(first / "a.mp4", 1, 9)
    render(first / HOSTILE, 2, 7)
    shutil.copy(first / "a.mp4", first / "copy.mp4")
    (first / HOSTILE_BROKEN).write_bytes(b"no video" * 99)
    shutil.copy(first / "a.mp4", second / "same.mp4")
    render(second / "own.mp4", 3, 4)
    return first, second


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, collections: tuple[Path, Path]) -> tuple[str, str]:
    """Labels of both collections, of one teacher and of two."""
    folder = tmp_path_factory.mktemp("labels")
    locations = str(folder / "one"), str(folder / "two")
    teachers = ["opencv:dis_ultrafast"], ["opencv:dis_ultrafast", "opencv:farneback"]
    for location, videos, labelling in zip(locations, collections, teachers, strict=True):
        collection, fetched = Collection.find(str(videos)), Teachers.fetched(labelling)
        check, graph = OcclusionCheck(), BareGraph()
        write_labels(collection, fetched, location, CLIPS, check, OPTIONS, run_id="abcd", graph=graph)
    return locations


@pytest.fixture(scope="module")
def labels(sets: tuple[str, str]) -> GradedSet:
    return GradedSet.read(PairSet.open(sets[0]))


@pytest.fixture(scope="module")
def other(sets: tuple[str, str]) -> GradedSet:
    return GradedSet.read(PairSet.open(sets[1]))


@dataclass
class Page(HTMLParser):
    """What a browser would make of the page: elements with their attributes, and the text by section."""

    source: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=dict)
    section: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag in ("article", "tr", "td", "p", "figure"):
            self.handle_data("\n")

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data

    def numbers(self, section: str, pattern: str) -> list[float]:
        return [float(number) for number in re.findall(pattern, self.text[section])]


def page(labels: GradedSet, other: GradedSet | None = None, options: GalleryOptions | None = None) -> Page:
    return Page(gallery_page(labels, other, options or GalleryOptions(count=3)).decode())


def identities(graded: GradedSet, positions: list[int]) -> list[str]:
    ids = graded.index["pair_id"].to_pylist()
    return [ids[position] for position in positions]


@pytest.mark.parametrize("column", ["photometric", "occluded", "flow_max"])
def test_the_worst_have_the_largest_values_and_the_best_the_smallest(labels: GradedSet, column: str) -> None:
    choice = choose(labels, GalleryOptions(count=4, order_by=column))
    query = f"select {column} from '{labels.pairs.location}/*/*.parquet' order by 1"
    values = [value for (value,) in duckdb.sql(query).fetchall()]
    assert len(values) == sum(PAIRS.values())
    assert [labels.row(position)[column] for position in choice.best] == values[:4]
    assert [labels.row(position)[column] for position in choice.worst] == values[:-5:-1]
    shown = page(labels, options=GalleryOptions(count=4, order_by=column))
    factor = 100 if column == "occluded" else 1
    assert shown.numbers("worst", rf"{column} ([\d.]+)") == pytest.approx(
        [factor * value for value in values[:-5:-1]], rel=0.01, abs=0.05
    )


def test_a_pair_without_a_value_is_neither_worst_nor_best(labels: GradedSet) -> None:
    values = labels.quality("photometric").copy()
    unknown = [int(values.argmax()), int(values.argmin())]
    values[unknown] = np.nan
    place = labels.index.schema.get_field_index("photometric")
    index = labels.index.set_column(place, "photometric", pa.array(values, pa.float32()))
    partly = replace(labels, index=index)
    choice = choose(partly, GalleryOptions(count=99, order_by="photometric"))
    assert sorted(choice.worst) == sorted(choice.best)
    assert sorted([*choice.worst, *unknown]) == sorted(choice.random) == list(range(len(values)))
    assert partly.means()["photometric"] == pytest.approx(np.nanmean(values))


def test_a_seed_chooses_the_same_pairs_whatever_else_the_set_holds(
    labels: GradedSet, other: GradedSet
) -> None:
    everything = identities(labels, list(choose(labels, GalleryOptions(count=99, seed=5)).random))
    same = [pair for pair in everything if pair in set(other.index["pair_id"].to_pylist())]
    others = identities(other, list(choose(other, GalleryOptions(count=99, seed=5)).random))
    assert [pair for pair in others if pair in set(same)] == same
    assert len(same) == PAIRS["a.mp4"]
    assert identities(labels, list(choose(labels, GalleryOptions(count=99, seed=6)).random)) != everything
    few = identities(labels, list(choose(labels, GalleryOptions(count=2, seed=5)).random))
    assert few == everything[:2]


def test_choosing_reads_no_flow_and_no_picture(tmp_path: Path, labels: GradedSet) -> None:
    location = tmp_path / "set"
    shutil.copytree(labels.pairs.location, location)
    for path in location.rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        content = bytearray(path.read_bytes())
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                if column.path_in_schema.startswith(("image", "flow_fw", "flow_bw", "occ_")):
                    start = column.data_page_offset
                    content[start : start + column.total_compressed_size] = bytes(
                        column.total_compressed_size
                    )
        path.write_bytes(content)
    damaged = GradedSet.read(PairSet.open(str(location)))
    assert choose(damaged, GalleryOptions()) == choose(labels, GalleryOptions())
    with pytest.raises(ValueError, match="is damaged"):
        damaged.row(0)


def test_every_image_of_the_page_decodes(labels: GradedSet, other: GradedSet) -> None:
    images = [attributes for tag, attributes in page(labels, other).elements if tag == "img"]
    # The wheel, and of each pair two frames and four pictures of its label at least.
    assert len(images) >= 1 + 9 * 6
    for attributes in images:
        assert attributes["alt"]
        kind, _, data = (attributes["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64"
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data, validate=True), np.uint8), cv2.IMREAD_COLOR)
        assert 256 <= image.shape[1] <= 512


def test_the_page_refers_to_nothing_outside_itself(labels: GradedSet, other: GradedSet) -> None:
    shown = page(labels, other)
    assert "http://" not in shown.source
    assert "https://" not in shown.source
    assert "url(" not in shown.source
    assert "@import" not in shown.source
    anchors = {attributes.get("id") for _, attributes in shown.elements}
    for tag, attributes in shown.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#summary").startswith("#")
        if "href" in attributes:
            assert attributes["href"].removeprefix("#") in anchors


def test_a_name_that_looks_like_markup_is_text(labels: GradedSet, other: GradedSet) -> None:
    for shown in (page(labels), page(labels, other)):
        assert HOSTILE in shown.text["videos"]
        assert HOSTILE_BROKEN in shown.text["videos"]
        assert HOSTILE in shown.text["worst"] + shown.text["best"] + shown.text["random"]
        assert "<script" not in shown.source
        assert "onerror=alert(1)>" not in shown.source
    assert HOSTILE in page(labels, other).text["comparison"]


def test_the_histogram_counts_every_pair(labels: GradedSet, other: GradedSet) -> None:
    for shown in (page(labels), page(labels, other)):
        shares = shown.numbers("histograms", r": ([\d.]+) % of the pairs")
        columns = len(labels.pairs.quality_columns)
        assert len(shares) == 30 * columns
        for column in range(columns):
            assert sum(shares[30 * column : 30 * (column + 1)]) == pytest.approx(100, abs=30 * 0.05)


def test_each_input_says_what_became_of_it(labels: GradedSet, collections: tuple[Path, Path]) -> None:
    rows = [[cell for cell in line.split("\n") if cell] for line in page(labels).text["videos"].split("\n\n")]
    by_name = {cells[0]: cells[1:] for cells in rows if cells}
    reasons = {Path(entry.video).name: entry.reason for entry in labels.pairs.ledger()}
    assert by_name[HOSTILE_BROKEN] == ["0", "0", "-", "-", "-", "-", "nothing", reasons[HOSTILE_BROKEN]]
    assert by_name["copy.mp4"][-2:] == ["duplicate", f"has the content of {collections[0] / 'a.mp4'}"]
    for name, pairs in PAIRS.items():
        # Pairs, frames read, cuts, static and faded pairs.
        assert by_name[name][:5] == [str(pairs), str(pairs + 1), "0", "0", "0"]


def test_a_set_compared_with_itself_differs_nowhere(labels: GradedSet) -> None:
    shown = page(labels, labels)
    total = sum(PAIRS.values())
    assert f"{total} pairs are in both, 0 only in A, 0 only in B." in shown.text["comparison"]
    for section in ("worst", "best", "random"):
        assert shown.numbers(section, r"EPE ([\d.]+) px") == [0.0] * 3


def test_sets_of_frames_of_different_sizes_say_why_they_share_no_pair(
    labels: GradedSet, collections: tuple[Path, Path], tmp_path: Path
) -> None:
    smaller = replace(CLIPS, size=(32, 48), min_size=(16, 16))
    collection, fetched = Collection.find(str(collections[0])), Teachers.fetched(["opencv:dis_ultrafast"])
    check, graph = OcclusionCheck(), BareGraph()
    write_labels(collection, fetched, str(tmp_path), smaller, check, OPTIONS, run_id="abcd", graph=graph)
    shown = page(labels, GradedSet.read(PairSet.open(str(tmp_path))))
    assert "0 pairs are in both" in shown.text["comparison"]
    assert "a pair is the same only at the same size" in shown.text["comparison"]


def test_a_comparison_counts_the_pairs_that_both_sets_have(labels: GradedSet, other: GradedSet) -> None:
    shown = page(labels, other, GalleryOptions(count=99))
    assert "8 pairs are in both, 6 only in A, 3 only in B." in shown.text["comparison"]
    assert "own.mp4\n3" in shown.text["comparison"]
    assert shown.text["worst"].count("B doesn't have this pair.") == 6


def test_two_sets_are_compared_pair_by_pair(labels: GradedSet, other: GradedSet) -> None:
    shown = page(labels, other, GalleryOptions(count=99))
    position = {pair: i for i, pair in enumerate(other.index["pair_id"].to_pylist())}
    errors = []
    for place in choose(labels, GalleryOptions(count=99)).worst:
        row = labels.row(place)
        if row["pair_id"] not in position:
            continue
        ours = labels.pairs.decode(row).flow_fw
        theirs = other.pairs.decode(other.row(position[row["pair_id"]])).flow_fw
        assert ours is not None
        assert theirs is not None
        errors.append(np.sqrt(((ours - theirs) ** 2).sum(axis=0)).mean())
    assert len(errors) == 8
    assert max(errors) > 0.1
    assert shown.numbers("worst", r"EPE ([\d.]+) px") == pytest.approx(errors, abs=0.006)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """Where the job's runs are recorded."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the job left."""

    output: Path
    told: str
    run: Run
    client: tracking.MlflowClient


@pytest.fixture(scope="module")
def made(sets: tuple[str, str], store: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("made") / "pages" / "gallery.html"
    arguments = ["--labels", sets[0], "--output", str(output), "--other", sets[1], "--count", "1"]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        run(main, Gallery, [*arguments, "--order-by", "flow_p99"])
    client = tracking.MlflowClient(store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    (recorded,) = client.search_runs([experiment.experiment_id])
    return Made(output=output, told=told.getvalue(), run=recorded, client=client)


def test_the_job_writes_the_page_in_the_order_that_was_asked_for_and_says_where(made: Made) -> None:
    assert str(made.output) in made.told
    assert "flow_p99" in Page(made.output.read_text()).text["worst"]


def test_the_run_of_a_page_leads_to_the_runs_of_its_labels(made: Made) -> None:
    tags = made.run.data.tags
    assert (made.run.info.status, tags["stage"]) == ("FINISHED", "gallery")
    assert tags["input.labels.run"] == tags["input.other.run"] == "abcd"


def test_the_run_of_a_page_has_the_page(made: Made, tmp_path: Path) -> None:
    artifact = made.client.download_artifacts(made.run.info.run_id, "gallery.html", str(tmp_path))
    assert Path(artifact).read_bytes() == made.output.read_bytes()


def test_the_run_of_a_page_has_the_means_of_the_labels(made: Made, sets: tuple[str, str]) -> None:
    ((mean,),) = duckdb.sql(f"select avg(photometric) from '{sets[0]}/*/*.parquet'").fetchall()
    assert made.run.data.metrics["labels/photometric"] == pytest.approx(mean, rel=1e-5)


def refused(error: type[Exception], message: str, output: Path, **options: Any) -> None:
    with pytest.raises(error, match=message):
        main(Gallery(output=str(output), **options))
    assert not output.exists()


def test_a_place_without_labels_is_refused(store: str, tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    refused(FileNotFoundError, f"there is no folder {nothing}", tmp_path / "page.html", labels=nothing)


def test_labels_that_are_not_finished_are_refused(sets: tuple[str, str], store: str, tmp_path: Path) -> None:
    shutil.copytree(sets[0], tmp_path / "unfinished")
    (tmp_path / "unfinished" / MANIFEST_FILE).unlink()
    labels = str(tmp_path / "unfinished")
    refused(ValueError, "isn't finished", tmp_path / "page.html", labels=labels)


def test_frames_without_labels_are_refused(
    sets: tuple[str, str], collections: tuple[Path, Path], store: str, tmp_path: Path
) -> None:
    frames = str(tmp_path / "frames")
    write_pairs(Collection.find(str(collections[1])), frames, CLIPS, OPTIONS, graph=BareGraph())
    message = "frame pairs without pseudo-labels"
    refused(ValueError, message, tmp_path / "page.html", labels=sets[0], other=frames)


def test_an_order_by_what_the_labels_do_not_have_is_refused_with_what_they_have(
    sets: tuple[str, str], store: str, tmp_path: Path
) -> None:
    # One teacher has no spread.
    message = r"'spread' is no quality column .* occluded, forward_backward"
    refused(ValueError, message, tmp_path / "page.html", labels=sets[0], order_by="spread")


def test_a_page_of_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="count 0 must be at least 1"):
        GalleryOptions(count=0)


def test_several_teachers_are_graded_by_their_spread_too(other: GradedSet) -> None:
    (worst,) = choose(other, GalleryOptions(count=1, order_by="spread")).worst
    assert other.row(worst)["spread"] == other.quality("spread").max() > 0
    assert "spread" in page(other).text["histograms"]
