"""The judge, on numbers alone: what it complains of, when it is out of patience, and what it remembers; the
score that it compares by, on scenes with truth."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.report import tau
from flowcore.objectives import validate_pair
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from pipelines.checkpoints import load_training_state, save_training_state
from pipelines.held_back import REFEREE
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


KINDS = {
    "steady light": SceneOptions(num_frames=2),
    "changing light": SceneOptions(num_frames=2, lighting=0.2),
    "large fast layers": SceneOptions(
        num_frames=2, layers=(4, 6), layer_speed=12.0, layer_radius=(0.25, 0.5)
    ),
}


@dataclass
class Judged:
    """A flow's errors on a scene, without and with truth."""

    comparable: float
    photometric: float
    epe: float


class Court:
    """A rendered scene on which flows are judged as held-back pairs are, and by its truth."""

    def __init__(self, options: SceneOptions) -> None:
        scene = render_scene(3, options)
        images = to_images(scene.frames)
        self.frames = Batch(image1=images[:1], image2=images[1:])
        self.truth = torch.from_numpy(scene.flow_fw), torch.from_numpy(scene.flow_bw)
        self._hidden = OcclusionCheck().both(*REFEREE.build().estimate(images[:1], images[1:]))

    def judge(self, forward: Tensor, backward: Tensor) -> Judged:
        sums = validate_pair(self.frames, forward, backward, OcclusionCheck(), self._hidden)
        return Judged(
            comparable=sums["comparable"] / sums["shown"],
            photometric=sums["photometric"] / max(sums["visible"], 1.0),
            epe=float((forward - self.truth[0]).norm(dim=1).mean()),
        )

    def off_by(self, px: float, generator: torch.Generator) -> Judged:
        """The true flow with smooth errors of this mean length."""
        flows = []
        for truth in self.truth:
            coarse = torch.randn(1, 2, 12, 16, generator=generator)
            error = torch.nn.functional.interpolate(coarse, truth.shape[-2:], mode="bicubic")
            flows.append(truth + px * error / error.norm(dim=1).mean())
        return self.judge(flows[0], flows[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_puts_flows_in_the_order_of_their_endpoint_errors(kind: str) -> None:
    court, generator = Court(KINDS[kind]), torch.Generator().manual_seed(0)
    judged = [court.off_by(px, generator) for px in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)]
    # It says of every pixel that the other frame doesn't show it.
    forward, backward = court.truth
    judged.append(court.judge(forward + 5.0, backward + 5.0))
    errors = [each.epe for each in judged]
    assert errors == sorted(errors)
    assert tau([each.comparable for each in judged], errors) == 1.0
    # Under its own mask that flow would win.
    assert min(judged, key=lambda each: each.photometric) is judged[-1]
