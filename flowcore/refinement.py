"""How does a flow come closer to what the frames show? By some steps of a classical method."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from flowcore.shapes import Flow, Frame


def refined(flow: Flow, first: Sequence[Frame], second: Sequence[Frame], iterations: int) -> Flow:
    """The flow after so many fixed-point iterations of OpenCV's variational refinement, on a CPU.

    It moves each vector to where brightness and its gradients agree and neighbours move alike; what is hidden
    follows its neighbours. A flow that isn't finite stays as it is. first and second: the frames of each
    pair, as many as flows, of the flow's size.

    Source: Brox et al. (ECCV 2004), "High Accuracy Optical Flow Estimation Based on a Theory for Warping",
    with OpenCV's parameters; FlowNet (Dosovitskiy et al., ICCV 2015) was refined by it as well.
    """
    method = cv2.VariationalRefinement.create()
    method.setFixedPointIterations(iterations)
    before = flow.float().cpu().numpy()
    after = []
    for vectors, image1, image2 in zip(before, first, second, strict=True):
        if not np.isfinite(vectors).all():
            # What isn't finite would spread.
            after.append(vectors)
            continue
        grey1 = cv2.cvtColor(image1, cv2.COLOR_RGB2GRAY)
        grey2 = cv2.cvtColor(image2, cv2.COLOR_RGB2GRAY)
        # It is changed in place, and OpenCV wants the strides of a new array, even of one pixel.
        begin = vectors.transpose(1, 2, 0).copy()
        after.append(method.calc(grey1, grey2, begin).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(after)).to(flow.device, flow.dtype)
