"""What a worker's logbook makes of the steps that it took: means, skipped steps, and one too many of them."""

import math
from collections.abc import Callable

import pytest
import torch

from pipelines.logbook import Logbook
from pipelines.step import Taken
from pipelines.validation import TrainingStopped


def taken(step: int, loss: float, norm: float = 1.0) -> Taken:
    values = torch.tensor([loss, norm], dtype=torch.float64)
    return Taken(step=step, learning_rate=0.5, names=("loss", "gradient_norm"), values=values)


def logbook(
    max_skipped: int = 9, *, skipped: int = 0, on_skipped: Callable[[Taken], None] = lambda _: None
) -> Logbook:
    return Logbook(skipped=skipped, max_skipped=max_skipped, on_skipped=on_skipped)


def add(book: Logbook, *steps: Taken) -> None:
    for each in steps:
        book.begin()
        book.has_waited()
        book.add(each, pairs=4)


def test_what_is_logged_is_the_mean_of_the_steps_since_the_last_entry() -> None:
    book = logbook()
    add(book, taken(0, 100.0))
    book.look()
    book.entry()
    add(book, taken(1, 2.0, norm=3.0), taken(2, 4.0, norm=5.0))
    book.look()
    entry = book.entry()
    assert (entry["loss"], entry["gradient_norm"], entry["learning_rate"]) == (3.0, 4.0, 0.5)


def test_a_step_counts_once_however_often_somebody_looks() -> None:
    book = logbook()
    for step, loss in enumerate((2.0, 4.0, 9.0)):
        add(book, taken(step, loss))
        book.look()
        book.look()
    assert book.entry()["loss"] == 5.0


@pytest.mark.parametrize("skipped", [taken(1, math.nan), taken(1, 7.0, norm=math.inf)])
def test_a_skipped_step_is_not_in_the_mean(skipped: Taken) -> None:
    book = logbook()
    add(book, taken(0, 2.0), skipped, taken(2, 4.0))
    book.look()
    assert book.entry()["loss"] == 3.0


def test_steps_that_were_all_skipped_have_a_speed_and_no_loss() -> None:
    book = logbook()
    add(book, taken(0, math.nan))
    book.look()
    assert book.entry().keys() == {"pairs_per_second", "waiting_for_data"}


def test_the_time_that_is_waited_is_a_share_of_the_time_that_steps_take() -> None:
    book = logbook()
    add(book, taken(0, 1.0), taken(1, 1.0))
    book.look()
    assert 0 <= book.entry()["waiting_for_data"] <= 1


def test_each_skipped_step_is_told_once_with_its_reason() -> None:
    told: list[Taken] = []
    book = logbook(on_skipped=told.append)
    add(book, taken(0, 1.0), taken(1, math.nan), taken(2, 1.0, norm=math.nan))
    book.look()
    book.look()
    assert [each.skipped for each in told] == [
        "the loss of step 1 is nan",
        "the gradient of step 2 is not finite",
    ]
    assert book.skipped == 2


def test_one_skipped_step_too_many_ends_the_training_with_its_reason_and_the_limit() -> None:
    book = logbook(max_skipped=1)
    add(book, taken(3, math.nan))
    book.look()
    add(book, taken(4, math.nan))
    with pytest.raises(
        TrainingStopped, match="the loss of step 4 is nan; 1 steps had been skipped before it"
    ):
        book.look()


def test_the_step_that_is_one_too_many_is_told_too() -> None:
    told: list[Taken] = []
    book = logbook(max_skipped=0, on_skipped=told.append)
    add(book, taken(4, math.nan))
    with pytest.raises(TrainingStopped):
        book.look()
    assert [each.step for each in told] == [4]


def test_steps_that_were_skipped_before_a_resume_count() -> None:
    book = logbook(max_skipped=2, skipped=2)
    add(book, taken(8, math.nan))
    with pytest.raises(TrainingStopped):
        book.look()
