"""A network as its own teacher: laws that hold for networks whose answers are known."""

import pytest
import torch
from torch import Tensor

from flowcore.networks import BidirectionalFlow, tiny
from flowcore.objectives import TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.self_supervision import SelfSupervision

MARGIN, HEIGHT, WIDTH = 16, 32, 64
LEVELS = [("stride1", 1.0)]


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(scene1: Tensor, scene2: Tensor, **more: Tensor) -> Batch:
    """Crops from the middle of scenes."""
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return Batch(image1=scene1[inner], image2=scene2[inner], scene1=scene1, scene2=scene2, **more)


def scenes() -> Batch:
    return batch_of(*random(0, 2, 2, 3, HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN))


class Known:
    """Answers a flow for the scenes; notes the size of what it is shown."""

    def __init__(self, flow: Tensor) -> None:
        self.flow = flow
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, image1: Tensor, image2: Tensor) -> BidirectionalFlow:
        self.shown.append(tuple(image1.shape[-2:]))
        assert not torch.is_grad_enabled()
        flow = self.flow.expand(len(image1), 2, *image1.shape[-2:])
        return BidirectionalFlow(forward=[flow], backward=[-flow], strides=(1,))


def crops(forward: Tensor, backward: Tensor) -> BidirectionalFlow:
    return BidirectionalFlow(forward=[forward], backward=[backward], strides=(1,))


def constant(u: float, v: float = 0.0) -> Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1)


def flow_of_crops(u: float) -> Tensor:
    return constant(u).repeat(2, 1, HEIGHT, WIDTH)


def test_the_network_sees_the_whole_scene_in_sides_that_it_takes() -> None:
    network = Known(constant(0.0))
    nothing = flow_of_crops(0.0)
    SelfSupervision(weight=1.0).terms(network, scenes(), crops(nothing, nothing), LEVELS, 0)
    assert network.shown == [(64, 128)]


def test_what_leaves_the_crop_and_not_the_scene_is_learnt_from_the_scene() -> None:
    # By 8 px to the right: known of the scene's pixels up to 8 px from its side, and of the crop's likewise.
    terms = SelfSupervision(weight=1.0).terms(
        Known(constant(8.0)), scenes(), crops(flow_of_crops(8.0), flow_of_crops(-8.0)), LEVELS, 0
    )
    fw, bw = terms
    assert [term.name for term in terms] == ["self_supervision/stride1/fw", "self_supervision/stride1/bw"]
    # Eight columns of the crop, of two pairs, in each direction.
    assert fw.count.item() == pytest.approx(2 * HEIGHT * 8)
    assert bw.count.item() == pytest.approx(2 * HEIGHT * 8)


def test_the_label_is_the_scene_s_flow_in_the_crop_s_place() -> None:
    batch = scenes()
    height, width = 64, 128
    place = torch.arange(width, dtype=torch.float32).view(1, 1, 1, width)
    flow = torch.cat([0.01 * place.expand(1, 1, height, width), torch.zeros(1, 1, height, width)], dim=1)
    wrong = flow_of_crops(40.0)
    objective = SelfSupervision(weight=1.0)
    labels, _ = objective._labels(Known(flow), batch, crops(wrong, wrong))
    assert labels.flow_fw is not None
    torch.testing.assert_close(
        labels.flow_fw[0, 0, 0], 0.01 * torch.arange(MARGIN, MARGIN + WIDTH, dtype=torch.float32)
    )


def test_where_the_crop_s_own_flow_agrees_with_itself_nothing_is_learnt_from_the_scene() -> None:
    still = flow_of_crops(0.0)
    terms = SelfSupervision(weight=1.0).terms(Known(constant(0.0)), scenes(), crops(still, still), LEVELS, 0)
    assert [term.count.item() for term in terms] == [0, 0]


def test_a_scene_whose_flow_disagrees_with_itself_teaches_nothing() -> None:
    class Wrong(Known):
        def __call__(self, image1: Tensor, image2: Tensor) -> BidirectionalFlow:
            flows = super().__call__(image1, image2)
            return BidirectionalFlow(forward=flows.forward, backward=flows.forward, strides=(1,))

    forward = flow_of_crops(8.0)
    terms = SelfSupervision(weight=1.0).terms(
        Wrong(constant(8.0)), scenes(), crops(forward, forward), LEVELS, 0
    )
    assert sum(term.count.item() for term in terms) == pytest.approx(0, abs=1e-3)


def test_what_a_transformation_filled_is_no_label() -> None:
    outside = torch.zeros(2, 1, HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN, dtype=torch.bool)
    whole = scenes()
    assert whole.scene1 is not None
    assert whole.scene2 is not None
    batch = batch_of(whole.scene1, whole.scene2, inside1=outside, inside2=~outside)
    fw, bw = SelfSupervision(weight=1.0).terms(
        Known(constant(8.0)), batch, crops(flow_of_crops(8.0), flow_of_crops(-8.0)), LEVELS, 0
    )
    assert fw.count.item() == 0
    assert bw.count.item() > 0


def test_it_comes_to_its_weight_in_ten_stairs_after_its_beginning() -> None:
    objective = SelfSupervision(weight=0.3, begins=100, ramp=50)
    shares = [objective.share(step) for step in range(200)]
    assert shares[:100] == [0] * 100
    assert shares[100:150] == [pytest.approx((step // 5 + 1) / 10) for step in range(50)]
    assert shares[150:] == [1] * 50


def test_without_a_weight_the_network_is_asked_once() -> None:
    network = tiny()["pwcnet"].build()
    asked = []

    def estimate(image1: Tensor, image2: Tensor) -> BidirectionalFlow:
        asked.append(image1.shape)
        return network(image1, image2)

    TeacherObjective()(estimate, scenes(), step=0, check=OcclusionCheck())
    assert len(asked) == 1


def test_the_network_learns_from_its_crops_alone() -> None:
    torch.manual_seed(0)
    network = tiny()["pwcnet"].build()
    objective = TeacherObjective(self_supervision=SelfSupervision(weight=1.0))
    with_grad = []

    def estimate(image1: Tensor, image2: Tensor) -> BidirectionalFlow:
        with_grad.append(torch.is_grad_enabled())
        return network(image1, image2)

    outcome = objective(estimate, scenes(), step=0, check=OcclusionCheck())
    terms = [term for term in outcome.terms if term.name.startswith("self_supervision/")]
    assert terms
    assert with_grad == [True, False]
    assert all(term.weight <= 1 for term in terms)


def test_a_step_is_of_another_phase_where_the_loss_changes() -> None:
    objective = TeacherObjective(
        unmasked_steps=10, self_supervision=SelfSupervision(weight=1.0, begins=20, ramp=20)
    )
    phases = [objective.phase(step) for step in range(60)]
    changes = [step for step in range(1, 60) if phases[step] != phases[step - 1]]
    assert changes == [10, *range(20, 40, 2)]


def test_crops_without_surroundings_can_t_be_taught_by_them() -> None:
    image1, image2 = random(1, 2, 2, 3, HEIGHT, WIDTH)
    nothing = flow_of_crops(0.0)
    with pytest.raises(ValueError, match=r"--augmentation\.surroundings"):
        SelfSupervision(weight=1.0).terms(
            Known(constant(0.0)), Batch(image1=image1, image2=image2), crops(nothing, nothing), LEVELS, 0
        )
