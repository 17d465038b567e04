"""What are the networks made of?"""

from torch import nn

FLOW_SCALE = 20.0
"""Pixels of motion that one unit of a decoder's output stands for, as PWC-Net and FlowNet scale their
truth."""


def convolution(
    channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size up to its stride, and a leaky ReLU."""
    layer = nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
    )
    nn.init.kaiming_normal_(layer.weight, a=0.1)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.LeakyReLU(0.1, inplace=True))


def flow_head(channels: int) -> nn.Conv2d:
    """Features to two components of flow."""
    return nn.Conv2d(channels, 2, 3, padding=1)
