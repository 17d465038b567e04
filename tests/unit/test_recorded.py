"""How a repetition compares with the run before it, on what both recorded."""

from dataclasses import replace

from pipelines.recorded import Recorded, comparison

BEFORE = Recorded(
    stage="finetune",
    recipe="smoke",
    options="{}",
    differences=[],
    losses={2: 0.5, 4: 0.25},
    data={"truth": "aa", "validation": "bb"},
    made_from={},
)


def test_equal_losses_on_the_same_data_are_the_same() -> None:
    assert comparison(BEFORE, replace(BEFORE)) == "the same: 2 losses equal to the last bit"


def test_the_first_loss_that_differs_is_named_and_by_how_much() -> None:
    after = replace(BEFORE, losses={2: 0.5, 4: 0.5})
    assert comparison(BEFORE, after) == (
        "not the same: losses differ from step 4 on, by at most 1 of their value"
    )


def test_other_data_are_named_before_the_losses_that_they_change() -> None:
    after = replace(BEFORE, data={"truth": "aa", "validation": "-"}, losses={2: 9.0})
    assert comparison(BEFORE, after) == "not the same: it read other data (validation)"


def test_fewer_losses_than_before_are_not_the_same() -> None:
    after = replace(BEFORE, losses={2: 0.5})
    assert comparison(BEFORE, after) == "not the same: losses of 2 steps then, and of 1 now"


def test_an_alias_is_pinned_to_the_model_that_it_named_then() -> None:
    before = replace(BEFORE, made_from={"init": "0123"})
    assert before.pinned("models:/flow-student@champion") == "runs:/0123/model"


def test_a_logged_model_is_pinned_already() -> None:
    before = replace(BEFORE, made_from={"init": "0123"})
    assert before.pinned(f"models:/m-{'0' * 32}") == f"models:/m-{'0' * 32}"


def test_a_folder_fresh_weights_and_no_model_stay_what_they_were() -> None:
    before = replace(BEFORE, made_from={"init": "0123"})
    assert [before.pinned(init) for init in ("/data/model", "fresh", None)] == ["/data/model", "fresh", None]
    assert BEFORE.pinned("models:/flow-student@champion") == "models:/flow-student@champion"
