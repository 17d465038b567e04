"""Is a network still learning while it trains? A judge looks at each validation and says whether to go on.

It knows numbers alone: `pipelines.held_back` makes them, and the workers ask for them. Its standing is part
of every checkpoint, so that where a training ends doesn't depend on when it was resumed.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from flowcore.occlusion import OcclusionCheck
from pipelines.pair_set import PairSet


class TrainingStopped(RuntimeError):  # noqa: N818 - not every stop is an error of the program
    """Training ended before its last step because going on is useless; the message names the remedy."""


def score_of(numbers: Mapping[str, float]) -> float:
    """What models are compared by; lower is better.

    The endpoint error if the held-back pairs have truth. Otherwise the photometric error of the pixels that a
    referee finds visible, the same ones for every model.
    """
    return numbers["epe"] if "epe" in numbers else numbers["comparable"]


@dataclass(frozen=True, kw_only=True)
class CollapseAlarm:
    """Finds a network that has settled on a useless answer."""

    max_occluded: float = 0.95
    """Mean share of occluded pixels above which too little is left to learn from."""
    min_flow_variance: float = 1e-5
    """Squared pixels. Below it the flow is the same everywhere."""
    must_improve: bool = True
    """Whether a network that began with fresh weights has to become better than they were."""

    def complaint(self, numbers: Mapping[str, float], fresh: Mapping[str, float] | None) -> str | None:
        """What is wrong, with the remedy; None if nothing is. `fresh` are the numbers of the fresh weights,
        None if training began with a trained network."""
        if numbers["occluded"] > self.max_occluded:
            return (
                f"collapsed: the check finds {numbers['occluded']:.0%} of the held-back frames occluded, so "
                "the masked loss is empty; train longer without the mask (--objective.unmasked-steps), or "
                "lower --training.learning-rate"
            )
        if numbers["flow_variance"] < self.min_flow_variance:
            return (
                f"collapsed: the flow is the same everywhere (variance {numbers['flow_variance']:.1e} px^2); "
                "lower --training.learning-rate, or check that the videos move"
            )
        # over all pixels: with fresh weights none may be visible
        if self.must_improve and fresh is not None and numbers["unmasked"] >= fresh["unmasked"]:
            return (
                f"not learning: the photometric error on held-back pairs is {numbers['unmasked']:.3f}, and "
                f"was {fresh['unmasked']:.3f} with fresh weights; lower --training.learning-rate or "
                "train longer without the mask (--objective.unmasked-steps)"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a stage wants its network judged by."""

    truth: PairSet | None = None
    """Pairs with truth to validate on; None holds back pairs of the first source."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """The run's occlusion check: that of its loss, its validation and its alarm."""
    alarm: CollapseAlarm = field(default_factory=CollapseAlarm)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from a validation."""

    decision: Literal["go on", "out of patience", "useless"]
    reason: str = ""
    """Why the checkpoint is useless, with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the validations of a training have gone so far."""

    judged: int = -1
    """The step of the checkpoint that was looked at last."""
    fresh: dict[str, float] | None = None
    """The numbers of the fresh weights; None if training began with a trained network."""
    best: float = math.inf
    not_better: int = 0
    """Validations in a row that were no better than the best one."""


class Judging:
    """The judging of one training, from its first validation to its last."""

    def __init__(
        self, alarm: CollapseAlarm, *, patience: int | None, unmasked_steps: int, starts_fresh: bool
    ) -> None:
        """unmasked_steps: the alarm is silent until the loss has a mask."""
        self._alarm = alarm
        self._patience = patience
        self._unmasked_steps = unmasked_steps
        self._starts_fresh = starts_fresh
        self.standing = Standing()

    def look_at(self, numbers: Mapping[str, float], step: int) -> Verdict:
        """The verdict on the checkpoint of a step, later than any before; no numbers mean that its flow isn't
        finite."""
        before = self.standing
        fresh, best, not_better = before.fresh, before.best, before.not_better
        reason = self._complaint(numbers, step)
        if reason is None and step == 0:
            fresh = dict(numbers) if self._starts_fresh else None
        elif reason is None:
            score = score_of(numbers)
            not_better = 0 if score < best else not_better + 1
            best = min(best, score)
        self.standing = Standing(judged=step, fresh=fresh, best=best, not_better=not_better)
        if reason is not None:
            return Verdict(decision="useless", reason=reason)
        return Verdict(decision="out of patience" if self.is_out_of_patience else "go on")

    @property
    def is_out_of_patience(self) -> bool:
        """Whether validation has been no better for long enough."""
        return self._patience is not None and self.standing.not_better >= self._patience

    def state(self) -> dict[str, Any]:
        """The standing as a checkpoint stores it."""
        return asdict(self.standing)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`."""
        self.standing = Standing(**state)

    def _complaint(self, numbers: Mapping[str, float], step: int) -> str | None:
        if not numbers:
            return f"the flow on held-back pairs is not finite at step {step}; lower --training.learning-rate"
        if step > self._unmasked_steps:
            return self._alarm.complaint(numbers, self.standing.fresh)
        return None
