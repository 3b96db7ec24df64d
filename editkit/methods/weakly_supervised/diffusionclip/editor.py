"""Editing with fine-tuned networks: invert with the original one, come back with a mixture that strength and time decide."""

from __future__ import annotations

from editkit.training.tuned_editor import TunedEditor


class DiffusionClipEditor(TunedEditor):
    """Inverts images up to t0 and generates them again with networks that were fine-tuned by this method or by EffDiff."""

    name = "diffusionclip"
