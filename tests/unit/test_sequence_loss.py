"""Every flow of a recurrent network has a loss; a pyramid keeps its weights."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowcore.losses import Photometric, Term
from flowcore.networks import BidirectionalFlow, FlowNetwork, tiny
from flowcore.objectives import Objective, Outcome, StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch

COUNT = 4
OBJECTIVES: dict[str, Objective] = {
    "teacher": TeacherObjective(unmasked_steps=1),
    "teacher, on the network's grid": TeacherObjective(
        photometric=Photometric(full_resolution=False), unmasked_steps=1
    ),
    "student, occlusion view": StudentObjective(unmasked_steps=1),
    "student, confidence view": StudentObjective(view="confidence"),
    "supervised": SupervisedObjective(),
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pairs() -> Batch:
    """Frames with labels that count everywhere."""
    image1, image2 = random(0, 2, 2, 3, 48, 64)
    flow_fw, flow_bw = (random(1, 2, 2, 2, 48, 64) - 0.5) * 8
    everywhere = torch.ones(2, 1, 48, 64)
    return Batch(
        image1=image1,
        image2=image2,
        flow_fw=flow_fw,
        flow_bw=flow_bw,
        confidence_fw=everywhere,
        confidence_bw=everywhere,
    )


def iterations(stride: int) -> BidirectionalFlow:
    """Random flows of as many iterations, the last one first, that can be asked for their gradient."""
    levels = (random(2, 2, COUNT, 2, 2, 48 // stride, 64 // stride) - 0.5) * 8
    forward, backward = ([level.requires_grad_() for level in way.unbind()] for way in levels)
    return BidirectionalFlow(forward=forward, backward=backward, strides=(stride,) * COUNT)


def asked(objective: Objective, flows: BidirectionalFlow) -> Outcome:
    return objective(lambda image1, image2: flows, pairs(), step=0, check=OcclusionCheck())


def loss(terms: list[Term]) -> Tensor:
    return torch.stack([term.weight * term.total / term.count.clamp(min=1) for term in terms]).sum()


@each_objective
@pytest.mark.parametrize("stride", [1, 8])
def test_every_iteration_is_pulled_in_both_directions(name: str, stride: int) -> None:
    flows = iterations(stride)
    levels = [*flows.forward, *flows.backward]
    for gradient in torch.autograd.grad(loss(asked(OBJECTIVES[name], flows).terms), levels):
        assert gradient.count_nonzero() > 0


@each_objective
def test_the_last_iteration_weighs_1_and_each_earlier_one_eight_tenths_of_the_next(name: str) -> None:
    terms = asked(OBJECTIVES[name], iterations(8)).terms
    for kind in {term.name.split("/")[0] for term in terms}:
        weights = {term.name: term.weight for term in terms if term.name.startswith(kind)}
        expected = {
            f"{kind}/iteration{COUNT - place}/{way}": pytest.approx(0.8**place)
            for place in range(COUNT)
            for way in ("fw", "bw")
        }
        assert weights == expected


def test_equal_iterations_cost_the_final_flow_s_loss_as_often_as_they_weigh() -> None:
    flows = iterations(8)
    same = dataclasses.replace(
        flows, forward=[flows.forward[0]] * COUNT, backward=[flows.backward[0]] * COUNT
    )
    alone = dataclasses.replace(flows, forward=flows.forward[:1], backward=flows.backward[:1], strides=(8,))
    for objective in OBJECTIVES.values():
        once, often = (loss(asked(objective, each).terms).item() for each in (alone, same))
        assert often == pytest.approx(once * (1 + 0.8 + 0.64 + 0.512), rel=1e-5)


@pytest.mark.parametrize("kind", [Photometric, SupervisedObjective])
def test_the_weight_of_earlier_iterations_is_an_option(
    kind: Callable[..., Photometric | SupervisedObjective],
) -> None:
    made = kind(sequence_gamma=0.5)
    objective = made if isinstance(made, SupervisedObjective) else TeacherObjective(photometric=made)
    weights = {term.weight for term in asked(objective, iterations(8)).terms}
    assert weights == {1.0, 0.5, 0.25, 0.125}


@pytest.mark.parametrize("kind", [Photometric, SupervisedObjective])
@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.5])
def test_a_gamma_that_leaves_iterations_without_a_loss_is_refused(
    kind: Callable[..., object], gamma: float
) -> None:
    with pytest.raises(ValueError, match=rf"sequence_gamma {gamma} must be at most 1, and above 0"):
        kind(sequence_gamma=gamma)


@each_objective
def test_levels_that_no_loss_would_reach_are_an_error_that_says_what_fits(name: str) -> None:
    # Iterations at stride 8 and the last one again at stride 4.
    flows = iterations(8)
    fine = torch.zeros(2, 2, 12, 16)
    mixed = BidirectionalFlow(
        forward=[fine, *flows.forward], backward=[fine, *flows.backward], strides=(4, *flows.strides)
    )
    with pytest.raises(ValueError, match=r"strides \(4, 8, 8, 8, 8\), some .* all have one stride.* or each"):
        asked(OBJECTIVES[name], mixed)


def built(backbone: str) -> FlowNetwork:
    torch.manual_seed(0)
    return tiny()[backbone].build()


@each_objective
@pytest.mark.parametrize("backbone", tiny())
def test_every_weight_of_every_backbone_learns_from_every_objective(backbone: str, name: str) -> None:
    network = built(backbone)
    batch = pairs()
    outcome = OBJECTIVES[name](network, batch, step=0, check=OcclusionCheck())
    loss(outcome.terms).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.count_nonzero() > 0, parameter_name


def test_a_pyramid_keeps_its_level_weights() -> None:
    outcome = TeacherObjective(photometric=Photometric(sequence_gamma=0.1, smoothness_weight=0.0))(
        built("pwcnet"), pairs(), step=0, check=OcclusionCheck()
    )
    assert [term.weight for term in outcome.terms] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25][: len(outcome.terms)]
    assert len(outcome.terms) >= 4
