"""The attribute classifier of a diffusion autoencoder (last.ckpt of its training), whose rows are the directions of edits."""

from __future__ import annotations

from editkit.backbones.convert.diffae_latent import scale_of
from editkit.backbones.convert.features import filled, write_features
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.semantic_codes import AttributeClassifier

CELEBA = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry "
    "Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns "
    "Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
)


def convert(source: Source) -> Converted:
    """Return the classifier's folder, of the raw weights, which the published edits follow.

    Raises:
        UserError: a file without the mean and deviation of z_sem.
    """
    count, dim = source.shape("classifier.weight")
    celeba = CELEBA.split()
    names = celeba if count == len(celeba) else [f"attribute_{n}" for n in range(count)]
    net = AttributeClassifier(attributes=names, dim=dim)
    linear = {f"linear.{kind}": source.tensors[f"classifier.{kind}"].float() for kind in ("weight", "bias")}
    filled(net, source.name, linear | scale_of(source))
    use = "editkit.backbones.semantic_codes.AttributeClassifier.load: {path}"
    return Converted({"attributes": count, "code": dim}, use, lambda folder: write_features(folder, net))


MARKS = (("classifier.weight", "classifier.bias", "ema_classifier.weight"),)
LAYOUT = Layout("diffae-classifier", "attribute classifier of diffusion autoencoders .ckpt", MARKS, convert)
