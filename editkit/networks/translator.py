"""A network from pictures of one domain to pictures of another, of the same size."""

from __future__ import annotations

from torch import Tensor, nn


class Translator(nn.Module):
    """g(x) = x + r(x), r a residual network between two halvings and two doublings (CycleGAN, arXiv 1703.10593, section 7.2).

    Departures: r's last layer starts at zero, so that the network begins as the identity; the sum takes the place of the tanh,
    so values may leave [-1, 1]; and instance norm is inside the residual blocks alone, for elsewhere it would take away the
    colours and the contrast of the picture, which g is to keep.

    Args:
        width: channels of the first layer; the residual blocks have four times as many.
        blocks: residual blocks, 6 for 64 or 128 pixels and 9 for 256 in the paper.
        channels: of a picture, whose height and width are multiples of four.
    """

    def __init__(self, width: int = 64, blocks: int = 6, channels: int = 3) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, width, 7, padding=3, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            *(Residual(4 * width) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            last := nn.Conv2d(width, channels, 7, padding=3, padding_mode="reflect"),
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the translation of pictures (B, C, H, W), float32 like them."""
        return x + self.change(x)


class Residual(nn.Module):
    """x + two convolutions with instance norm, at `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
