"""Prompt-to-prompt on a photograph: invert it under a source prompt, redo it under another with the source's attention.

Hertz et al., arXiv 2208.01626; the source's lane is put back onto the inversion after each step, as direct inversion does
(arXiv 2310.01506), so that the edit sees the attention of the photograph itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.attention import constant_text
from editkit.backbones.attention_taps import attention_taps
from editkit.backbones.latent import LatentBackbone
from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.invert import GUIDED, INVERTERS, Direct, Inverter, replay
from editkit.engine.lanes import stack
from editkit.engine.local_blend import LocalBlend
from editkit.engine.prompt_to_prompt import Controlled, CrossEdit, PromptToPrompt, in_groups, refine, replace, reweight
from editkit.engine.rng import level_noise
from editkit.engine.sample import OnStep, sample
from editkit.engine.trajectory import Trajectory
from editkit.engine.words import Window, Words, equalizer, indicator, split_words
from editkit.errors import UsageError, suggestion
from editkit.training.editor import draws_of, images_of
from editkit.training.method import Artefact, Editor, Method
from editkit.types import Condition, EditRequest, EditResult, Prediction

KINDS = {"replace": replace, "refine": refine}


@dataclasses.dataclass(frozen=True)
class Control:
    """How an edit's attention follows its source's.

    Attributes:
        kind: "replace" (word by word), "refine" (words added), or None: the first for prompts of as many words.
        cross: end, or (start, end), of the cross-attention's window as a share of the steps.
        self_attention: the same of the self-attention's.
        weights: factors for words of the prompt.
        blend: a word or phrase of the source prompt and one of the prompt; the rest of the picture stays as it was.

    Raises:
        UsageError: another kind, or other than two phrases to blend by.
    """

    kind: str | None = None
    cross: Window = 0.4
    self_attention: Window = 0.6
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    blend: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise UsageError(f"unknown kind {self.kind!r} of edit.{suggestion(self.kind, KINDS)} Choose from {', '.join(KINDS)}")
        if self.blend is not None and len(self.blend) != 2:
            raise UsageError(f"blend takes a phrase of the source prompt and one of the prompt, got {list(self.blend)}")

    def of(self, pairs: Sequence[tuple[Words, Words]]) -> PromptToPrompt:
        """Return the control of a batch [sources, edits] of (source prompt, prompt)."""
        blend = None
        if self.blend is not None:
            rows = [indicator(words, [phrase]) for n, phrase in enumerate(self.blend) for words in (pair[n] for pair in pairs)]
            blend = LocalBlend(torch.stack(rows))
        return PromptToPrompt(
            CrossEdit.stack([self._edit(*pair) for pair in pairs]), self_window=self.self_attention, blend=blend
        )

    def _edit(self, source: Words, target: Words) -> CrossEdit:
        kind = self.kind or ("replace" if len(source.words) == len(target.words) else "refine")
        return reweight(KINDS[kind](source, target, self.cross), equalizer(target, self.weights))


class PromptToPromptEditor(Editor):
    """Invert an image under its source prompt and sample it beside its edit, whose attention follows.

    Args:
        backbone: a latent diffusion model that reads text.
        inverter: how to go up; the states that it kept are what the source's lane is put back to.
        control: how attention is controlled.
        steps: noise levels, unless a request says otherwise.
        scale: classifier-free guidance towards both prompts.
    """

    name = "p2p"
    needs = ("image", "source_prompt", "prompt")

    def __init__(self, backbone: LatentBackbone, inverter: Inverter, control: Control, *, steps: int, scale: float) -> None:
        self.backbone, self.inverter, self.control, self.steps, self.scale = backbone, inverter, control, steps, scale

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Trajectory:
        """Return the inversion of the images under their source prompts, without guidance."""
        device = self.backbone.device
        latents = self.backbone.encode(images_of(requests).to(device))
        steps = requests[0].steps or self.steps
        levels = self.backbone.inversion_levels(steps)
        noise = level_noise(latents.shape[1:], **draws_of(requests), purpose="p2p", device=device)
        cond = stack([self.backbone.condition(one.with_(prompt=one.source_prompt)) for one in requests], [1] * len(requests))
        with constant_text(self.backbone):
            return self.inverter.invert(self._denoiser(), latents, levels, cond, noise=noise)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Trajectory) -> EditResult:
        """Return the images as they become under their prompts."""
        count, backbone = len(requests), self.backbone
        texts = [one.source_prompt or "" for one in requests] + [one.prompt or "" for one in requests]
        told = [backbone.condition(EditRequest("", prompt=text)) for text in (*texts, "")]
        cond = in_groups(stack(told[:-1], [1] * len(texts)), [*range(count)] * 2)
        words = [split_words(text, backbone.tokenizer.tokenize, cond.tokens.shape[1]) for text in texts]
        control = self.control.of(list(zip(words[:count], words[count:], strict=True)))
        back = replay(Trajectory.stack([state, state]))
        own = None if state.inverter == Direct.name else back.get("on_step")  # what direct inversion does is done to the sources
        back["on_step"] = _in_turn(own, _sources_from(state), control.on_step)
        guidance = _left_alone(back.pop("guidance", ClassifierFree(self.scale, told[-1])))
        with attention_taps(backbone.unet, control), constant_text(backbone):
            x = sample(Controlled(backbone, control, state.levels, state.start), cond=cond, guidance=guidance, **back)
        calls = float(state.calls + state.start * 2 * (1 if self.scale in (0, 1) else 2))
        return EditResult(backbone.decode(x[count:]), scores={"network_calls": [calls] * count})

    def _denoiser(self) -> Denoiser:
        """Return what is inverted through: the backbone, under guidance for inverters of guided sampling."""
        if self.inverter.name not in GUIDED:
            return self.backbone
        return Guided(self.backbone, ClassifierFree(self.scale, self.backbone.condition(EditRequest("", prompt=""))))


class PromptToPromptMethod(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: a latent diffusion model that reads text.
        inverter: name in `editkit.engine.invert.INVERTERS`.
        inverter_settings: its settings; DDIM asks at the target level, and all states are kept, unless they say otherwise.
        steps: noise levels.
        scale: classifier-free guidance towards both prompts.
        control: fields of `Control`.

    Raises:
        UsageError: an unknown inverter, or a backbone that reads no text.
    """

    def __init__(
        self,
        *,
        backbone: LatentBackbone,
        inverter: str = "ddim",
        inverter_settings: Mapping[str, Any] | None = None,
        steps: int = 50,
        scale: float = 7.5,
        **control: Any,
    ) -> None:
        super().__init__()
        if getattr(backbone, "tokenizer", None) is None:
            raise UsageError("p2p needs a backbone that reads text: choose a latent one, such as backbone=sd15")
        self.backbone, self.settings = backbone, {"steps": steps, "scale": scale}
        self.inverter, self.control = inverter_of(inverter, inverter_settings or {}), Control(**control)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return PromptToPromptEditor(self.backbone, self.inverter, self.control, **self.settings)  # type: ignore[arg-type]


def inverter_of(name: str, settings: Mapping[str, Any]) -> Inverter:
    """Return an inverter by name; where it can, it asks at the target level and keeps all states.

    Raises:
        UsageError: an unknown name or setting.
    """
    if name not in INVERTERS:
        raise UsageError(f"unknown inverter {name!r}.{suggestion(name, INVERTERS)} Choose from {', '.join(INVERTERS)}")
    make: Any = INVERTERS[name]
    fields = [each.name for each in dataclasses.fields(make)]
    wrong = [key for key in settings if key not in fields]
    if wrong:
        raise UsageError(f"the inverter {name} has no setting {wrong[0]!r}; it has: {', '.join(fields) or 'none'}")
    defaults = {key: value for key, value in {"query": "target", "pivots": True}.items() if key in fields}
    return make(**(defaults | dict(settings)))


def _left_alone(guidance: ClassifierFree) -> ClassifierFree:
    """Return guidance whose unconditional branch, one for all times or one for each, belongs to no group."""
    uncond = guidance.uncond
    if callable(uncond):
        return dataclasses.replace(guidance, uncond=lambda t: _alone(uncond(t)))
    return dataclasses.replace(guidance, uncond=_alone(uncond))


def _alone(cond: Condition) -> Condition:
    return in_groups(cond, [-1] * len(cond.tokens))


def _sources_from(trajectory: Trajectory) -> OnStep:
    """Return an on_step that puts the first rows back onto the states that an inversion kept."""

    def put_back(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        kept = trajectory.states.get(j)
        return None if kept is None else torch.cat([kept, x[len(kept) :]])

    return put_back


def _in_turn(*hooks: OnStep | None) -> OnStep:
    """Return several on_step as one; each sees what the one before made of the state."""

    def run(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor:
        for hook in hooks:
            replaced = None if hook is None else hook(i, j, x, pred)
            x = x if replaced is None else replaced
        return x

    return run
