"""The judge, on numbers alone: what it complains of, when it is out of patience, and what it remembers."""

import math
from typing import Any

import pytest

from pipelines.checkpoints import load_training_state, save_training_state
from pipelines.validation import CollapseAlarm, Judging, score_of

HEALTHY = {"occluded": 0.2, "flow_variance": 1.0, "photometric": 2.0, "unmasked": 2.0, "comparable": 2.0}
# With fresh weights nothing may be visible: what is compared has to be there all the same.
FRESH = {"occluded": 1.0, "flow_variance": 1.0, "photometric": 0.0, "unmasked": 3.0}


def judging(**changes: Any) -> Judging:
    options: dict[str, Any] = {"patience": None, "unmasked_steps": 0, "starts_fresh": True}
    return Judging(CollapseAlarm(), **(options | changes))


def scoring(comparable: float) -> dict[str, float]:
    return HEALTHY | {"comparable": comparable}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"occluded": 0.96}, "96% of the held-back frames occluded"),
        ({"flow_variance": 1e-6}, "the same everywhere"),
        ({"unmasked": 3.0}, "not learning"),
    ],
)
def test_the_alarm_names_what_is_wrong_and_only_then(change: dict[str, float], message: str) -> None:
    assert CollapseAlarm().complaint(HEALTHY, FRESH) is None
    complaint = CollapseAlarm().complaint(HEALTHY | change, FRESH)
    assert complaint is not None
    assert message in complaint


def test_a_trained_network_need_not_improve() -> None:
    judge = judging(starts_fresh=False)
    judge.look_at(FRESH, 0)
    assert judge.look_at(scoring(3.5), 4).decision == "go on"


def test_a_fresh_network_has_to_become_better_than_it_was() -> None:
    judge = judging()
    assert judge.look_at(FRESH, 0).decision == "go on"
    verdict = judge.look_at(HEALTHY | {"unmasked": 3.0}, 4)
    assert (verdict.decision, "not learning" in verdict.reason) == ("useless", True)


def test_the_alarm_is_silent_until_the_loss_has_a_mask() -> None:
    judge = judging(unmasked_steps=4)
    blind = HEALTHY | {"occluded": 1.0}
    assert [judge.look_at(blind, step).decision for step in (0, 4, 8)] == ["go on", "go on", "useless"]


def test_a_flow_that_is_not_finite_is_useless_at_any_step() -> None:
    verdict = judging(unmasked_steps=9).look_at({}, 2)
    assert verdict.decision == "useless"
    why = "the flow on held-back pairs is not finite at step 2; lower --training.learning-rate"
    assert verdict.reason == why


def test_patience_ends_after_validations_in_a_row_that_are_no_better() -> None:
    judge = judging(patience=2)
    judge.look_at(FRESH, 0)
    verdicts = [judge.look_at(scoring(s), 1 + at) for at, s in enumerate((2.0, 2.0, 1.5, 1.6, 1.5))]
    assert [verdict.decision for verdict in verdicts] == [*["go on"] * 4, "out of patience"]


def test_without_patience_there_is_no_end_of_it() -> None:
    judge = judging()
    assert {judge.look_at(scoring(2.0), step).decision for step in range(1, 50)} == {"go on"}


def test_truth_decides_what_is_better_where_there_is_some() -> None:
    assert score_of({"comparable": 1.0, "epe": 4.0}) == 4.0
    assert score_of({"comparable": 1.0, "unmasked": 2.0, "photometric": 0.0}) == 1.0


def test_a_judge_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Any) -> None:
    through, first, second = (judging(patience=2) for _ in range(3))
    seen = [FRESH, *map(scoring, (2.0, 2.5, math.inf, 1.0))]
    verdicts = [through.look_at(numbers, step) for step, numbers in enumerate(seen)]
    resumed = [first.look_at(numbers, step) for step, numbers in enumerate(seen[:3])]
    save_training_state(tmp_path, {"judging": first.state()})
    second.restore(load_training_state(tmp_path)["judging"])
    resumed += [second.look_at(numbers, step) for step, numbers in enumerate(seen) if step >= 3]
    assert resumed == verdicts
    assert second.standing == through.standing
