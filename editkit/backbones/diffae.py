"""Diffusion autoencoders (Preechakul et al., CVPR 2022, arXiv 2111.15640): a UNet conditioned on a semantic code, z_sem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.features import FeatureNet, holds
from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.backbones.strided import strided_levels
from editkit.backbones.unet import dtype_of
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError
from editkit.networks.semantic_encoder import SemanticEncoder
from editkit.networks.two_conditions import TwoConditions, add_second_condition, zero
from editkit.types import Condition, EditRequest, Levels, Prediction


class StartedEncoder(FeatureNet):
    """A semantic encoder by itself, which a diffusion autoencoder can start with.

    Args:
        sample_size, encoder_channels, code, blocks, attended, groups: see `DiffusionAutoencoder`.
    """

    kind = "semantic-encoder"

    def __init__(
        self,
        *,
        sample_size: int,
        encoder_channels: Sequence[int],
        code: int,
        blocks: int = 2,
        attended: Sequence[int] = (16,),
        groups: int = 32,
    ) -> None:
        levels = {"encoder_channels": list(encoder_channels), "attended": list(attended)}
        super().__init__(sample_size=sample_size, code=code, blocks=blocks, groups=groups, **levels)
        self.encoder = SemanticEncoder(encoder_channels, code, size=sample_size, blocks=blocks, attended=attended, groups=groups)

    @property
    def width(self) -> int:
        """Return how many numbers an image becomes."""
        return int(self.config["code"])

    def heads(self) -> list[nn.Conv2d]:
        """Return the last layers, which each put out a code; the codes lie side by side in their order."""
        return [last_layer(self.encoder.out)]

    def forward(self, images: Tensor) -> Tensor:
        """Return codes (B, width) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(images)

    @torch.no_grad()
    def whitened(self, images: Tensor, ridge: float) -> StartedEncoder:
        """Make each code white over images (N, 3, H, W), by its last layer, and return the encoder.

        Args:
            ridge: added to the variance of every direction, as a share of their mean.
        """
        heads = self.heads()
        found = torch.cat([self(part.to(heads[0].weight.device)) for part in images.split(64)]).double()
        for last, codes in zip(heads, found.chunk(len(heads), 1), strict=True):
            white = whitening(codes, ridge)
            last.bias.copy_(white @ (last.bias.double() - codes.mean(0)))
            last.weight.copy_((white @ last.weight[:, :, 0, 0].double())[:, :, None, None])
        return self


def whitening(vectors: Tensor, ridge: float) -> Tensor:
    """Return the symmetric matrix (D, D) that makes vectors (N, D) uncorrelated, with a deviation of one but for the ridge.

    Args:
        ridge: added to the variance of every direction, as a share of their mean; directions of much less stay small.
    """
    variances, axes = torch.linalg.eigh(torch.cov(vectors.T).cpu())
    white = (axes / (variances.clamp(min=0) + ridge * variances.mean()).sqrt()) @ axes.T
    return white.to(vectors.device)


def last_layer(head: nn.Sequential) -> nn.Conv2d:
    """Return the convolution of what reads a code off features."""
    return next(layer for layer in head if isinstance(layer, nn.Conv2d))


class DiffusionAutoencoder(FeatureNet):
    """The semantic encoder and the UNet that it conditions, which are trained together and lie in one folder.

    Args:
        sample_size: side of the pictures.
        channels: of each level of the UNet, the largest pictures first.
        encoder_channels: of each level of the encoder.
        code: width of z_sem.
        embedding: width of the time's embedding.
        blocks: of a level on the way down; the way up has one more.
        attended: sides of pictures at which attention follows every block, besides the middle.
        groups: of channels that are normalised together.
        dropout: of the UNet's blocks in training.
        unet: arguments of diffusers' UNet2DModel that take the place of the published network's, for one that another model
            starts (`begin_diffae`).
        parameterization: what the UNet puts out, "eps", "v" or "x0".
    """

    kind = "diffae"
    started: ClassVar[type[StartedEncoder]] = StartedEncoder  # what its encoder may start with

    def __init__(
        self,
        *,
        sample_size: int,
        channels: Sequence[int],
        encoder_channels: Sequence[int],
        code: int = 512,
        embedding: int = 512,
        blocks: int = 2,
        attended: Sequence[int] = (16,),
        groups: int = 32,
        dropout: float = 0.1,
        unet: Mapping[str, Any] | None = None,
        parameterization: str = "eps",
    ) -> None:
        levels = {"channels": list(channels), "encoder_channels": list(encoder_channels), "attended": list(attended)}
        widths = {"sample_size": sample_size, "code": code, "embedding": embedding, "blocks": blocks}
        own = {} if unet is None else {"unet": dict(unet), "parameterization": parameterization}
        super().__init__(**widths, **levels, groups=groups, dropout=dropout, **own)
        self.parameterization = parameterization
        attends = [sample_size >> level in attended for level in range(len(channels))]
        published = {
            "sample_size": sample_size,
            "block_out_channels": tuple(channels),
            "layers_per_block": blocks,
            "down_block_types": tuple("AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends),
            "up_block_types": tuple("AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "downsample_padding": 1,
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": None,  # one head
            "attn_norm_num_groups": groups,
            "norm_num_groups": groups,
            "time_embedding_dim": embedding,
            "dropout": dropout,
        }
        self.unet = add_second_condition(UNet2DModel(**(published if unet is None else unet)), code)
        self.encoder = SemanticEncoder(encoder_channels, code, size=sample_size, blocks=blocks, attended=attended, groups=groups)


class DiffAEBackbone(PixelBackbone):
    """A diffusion autoencoder as a Denoiser, frozen and in eval mode. Its condition is z_sem, as `Condition.vector`.

    Args:
        net: encoder and UNet.
    """

    def __init__(self, net: DiffusionAutoencoder) -> None:
        super().__init__(net.unet, Schedule.linear(), net.parameterization)
        self.encoder = net.encoder.requires_grad_(False).eval()
        self.config, self.network = net.config, type(net)
        self.code_width: int = net.config["code"]

    @property
    def parts(self) -> dict[str, slice]:
        """Return what a code consists of, by name: where it lies in `Condition.vector`."""
        return {"code": slice(0, self.code_width)}

    def semantic_code(self, images: Tensor) -> Tensor:
        """Return z_sem (B, code_width) in float32 of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(images.to(self.device, self.unet.dtype)).float()

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `load_diffae` reads."""
        net = self.network(**self.config)
        net.load_state_dict(self.state_dict())
        return net.save(folder)

    def condition(self, request: EditRequest) -> Condition | None:
        """Return z_sem of a request's image; None for a request without one."""
        if request.image is None:
            return None
        with torch.no_grad():
            return Condition(vector=self.semantic_code(request.image[None]))

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of x (B, 3, H, W) at model time t, given z_sem (B, code_width) as `cond.vector`.

        Raises:
            UsageError: no z_sem.
        """
        middle, finish = self.halves(x, t, cond)
        return finish([middle])[0]

    def levels(self, n: int, *, start: int | None = None) -> Levels:
        """Return the levels of the published code: every (1000 / n)th time from 0, an image placed at the first of them."""
        return strided_levels(self.schedule, n, start)

    def _embedding(self, t: float | Tensor, cond: Condition | None, batch: int) -> Tensor:
        if cond is None or cond.vector is None:
            raise UsageError(
                "a diffusion autoencoder is conditioned on the code of a picture, and none was given: edit a picture "
                "(--method reconstruction), or pass Condition(vector=backbone.semantic_code(images))"
            )
        time = super()._embedding(t, cond, batch)
        return torch.cat([time, cond.vector.to(time).expand(batch, -1)], 1)


Net = TypeVar("Net", bound=DiffusionAutoencoder)


def begin_diffae(path: str | Path, **network: Any) -> DiffusionAutoencoder:
    """Return a diffusion autoencoder that starts as an unconditional model: of the code it says nothing yet.

    Args:
        path: the folder of a pixel model, or its bundled name; or of a diffusion autoencoder, which is taken as it is.
        network: `code`, `encoder_channels` and what else of `DiffusionAutoencoder` the encoder depends on.

    Raises:
        UserError: no such model, or one that does not scale and shift by the time or has another noise schedule.
        UsageError: a diffusion autoencoder of other arguments, or a pixel model without arguments of an encoder.
    """
    return begun(DiffusionAutoencoder, path, **network)


def begun(kind: type[Net], path: str | Path, **network: Any) -> Net:
    """Return a network of a kind, see `begin_diffae`."""
    if holds(path, kind):
        return gone_on(kind.load(path), path, network)
    if lacking := [f"method.network.{name}" for name in ("code", "encoder_channels") if name not in network]:
        raise UsageError(f"{path} has no encoder to go on with; for a new one give {' and '.join(lacking)}")
    start = load_pixel(path)
    if start.unet.config.resnet_time_scale_shift != "scale_shift":
        raise UserError(
            f"{path} cannot become a diffusion autoencoder: its blocks add the time, they need to scale and shift by it"
        )
    if not torch.equal(start.schedule.table, Schedule.linear().table):
        raise UserError(f"{path} cannot become a diffusion autoencoder: those have a linear noise schedule, 1e-4 to 0.02")
    unet = {name: value for name, value in start.unet.config.items() if not name.startswith("_")}
    widths = {"sample_size": unet["sample_size"], "channels": unet["block_out_channels"], "embedding": start.time_width}
    net = kind(**{"dropout": unet["dropout"], **network}, **widths, unet=unet, parameterization=start.parameterization)
    renamed = {name.replace("time_emb_proj.", "time_emb_proj.time."): value for name, value in start.unet.state_dict().items()}
    missing, unknown = net.unet.load_state_dict(renamed, strict=False)
    assert not unknown and all("time_emb_proj.code." in name for name in missing)
    for layer in net.unet.modules():
        if isinstance(layer, TwoConditions):
            zero(layer.code)
    return net


def take_encoder(net: DiffusionAutoencoder, path: str | Path, begun: str | None) -> None:
    """Let a network that is to be trained start with the encoder of a folder of its `started`.

    Args:
        begun: what the rest of the network started from, if anything.

    Raises:
        UserError: something else in the folder.
        UsageError: an encoder of other arguments, or a network that began with one already.
    """
    if begun is not None and any(holds(begun, kind) for kind in (DiffusionAutoencoder, type(net))):
        raise UsageError(f"{begun} has an encoder already: to go on with it set method.encoder_from=null")
    start = net.started.load(path)
    asked = {"levels": len(net.config["channels"]), **net.config}
    for name, own in start.config.items():
        if own != asked[name]:
            raise UsageError(f"the encoder of {path} has {name} {own}, the autoencoder {asked[name]}: give both the same {name}")
    net.encoder.load_state_dict(start.encoder.state_dict())


def stages_before(net: DiffusionAutoencoder, encoder_from: str | None, init_from: str | None) -> list[str]:
    """Return the exports of stages that a network began with; a pixel model is none."""
    stages = [] if encoder_from is None else [encoder_from]
    return [*stages, init_from] if init_from is not None and holds(init_from, type(net)) else stages


def gone_on(net: Net, path: str | Path, network: Mapping[str, Any]) -> Net:
    """Return a trained network that has the arguments that were asked for, for more training.

    Raises:
        UsageError: it has others.
    """
    for name, wanted in network.items():
        if name in net.config and net.config[name] != wanted:
            own = str(net.config[name]).replace(" ", "")
            raise UsageError(f"{path} has {name}={own}, not {wanted}: to go on with it set method.network.{name}={own}")
    return net.train().requires_grad_(True)


def load_diffae(path: str | Path, *, dtype: str = "float32") -> DiffAEBackbone:
    """Load a diffusion autoencoder: what `editkit convert` made of a published checkpoint, or what was trained here.

    Args:
        path: its folder, or its name in $EDITKIT_WEIGHTS.
        dtype: precision of the networks, "float32", "bfloat16" or "float16"; everything around them stays in float32.

    Raises:
        UserError: no such weights, something else in the folder, an unknown dtype.
    """
    return DiffAEBackbone(DiffusionAutoencoder.load(resolve(path)).to(dtype_of(dtype)))
