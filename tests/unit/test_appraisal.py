"""What is said of a label set's quality: which medians it has, and when a teacher's labels look useless."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.appraisal import USUAL, Appraisal, medians

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "results" / "calibration"
SOUND = {
    "occluded": 0.1,
    "forward_backward": 0.2,
    "photometric": 6.0,
    "flow_p50": 2.0,
    "flow_p99": 8.0,
    "flow_max": 9.0,
}


def appraisal(files: int = 2, all_files: int = 2, **columns: float | list[float]) -> Appraisal:
    """Of a set of two pairs, sound but for these columns."""
    values = {name: np.broadcast_to(np.float32(value), 2) for name, value in (SOUND | columns).items()}
    return Appraisal(
        location="/my labels", pairs=2, files=files, all_files=all_files, medians=medians(pa.table(values))
    )


def text_of(found: Appraisal) -> str:
    # Imported here, as it brings what draws pictures.
    from jobs.report import appraisal_text

    return appraisal_text(found)


def test_a_median_is_over_the_pairs_that_have_a_value() -> None:
    found = medians(pa.table({"photometric": pa.array([5.0, np.nan, 1.0, 2.0], pa.float32())}))
    assert (found["photometric"].value, found["photometric"].unknown) == (2.0, 1)


def test_sound_labels_are_warned_of_in_no_way() -> None:
    found = appraisal()
    assert found.warnings() == []
    assert not any(found.is_more_than_usual(column) for column in found.medians)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("occluded", 0.97, "97% or more of their pixels occluded"),
        ("flow_p99", 0.1, "hardly anything moves"),
        ("forward_backward", 1.5, "miss each other by 1.50 px"),
    ],
)
def test_useless_labels_are_warned_of_with_what_to_type(column: str, value: float, told: str) -> None:
    (warning,) = appraisal(**{column: value}).warnings()
    assert told in warning
    assert "--labels '/my labels'" in warning


def test_pairs_without_a_visible_pixel_are_warned_of_as_occluded() -> None:
    found = appraisal(occluded=1.0, photometric=np.nan, forward_backward=np.nan)
    assert len(found.warnings()) == 1
    assert "2 pairs without a value" in text_of(found)


def test_columns_that_a_set_lacks_are_left_out() -> None:
    assert "spread" not in text_of(appraisal())
    assert "spread" in text_of(appraisal(spread=0.5))


def test_pairs_without_a_third_frame_are_counted() -> None:
    assert "1 pairs have no third frame" in text_of(appraisal(continued=[0.1, 0.0], misfit=[0.5, np.nan]))


def test_of_a_large_set_it_says_how_many_files_were_looked_at() -> None:
    assert "2 pairs in 2 of 9 files" in text_of(appraisal(files=2, all_files=9))
    assert "files" not in text_of(appraisal()).splitlines()[0]


@pytest.mark.parametrize("column", USUAL)
def test_what_is_usual_is_what_was_measured_of_one_teachers_labels(column: str) -> None:
    tables = [list(csv.DictReader(path.open(), delimiter="\t")) for path in MEASURED.glob("*.tsv")]
    of_one = [rows for rows in tables if "spread" not in rows[0]]
    ends = [np.nanpercentile([float(row[column]) for row in rows], (10, 90)) for rows in of_one]
    assert len(of_one) == 4
    assert USUAL[column] == pytest.approx(
        (min(low for low, _ in ends), max(high for _, high in ends)), rel=0.02
    )
