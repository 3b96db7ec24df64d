"""Methods that edit by the code of a diffusion autoencoder: nothing is trained here, the results of stages are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.semantic_codes import AttributeClassifier, LatentDDIM
from editkit.engine.cache import InversionCache
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.losses.identity import Identity
from editkit.metrics.images import psnr
from editkit.training.artefact import Artefact
from editkit.training.code_editor import CodeEditor
from editkit.training.editor import images_of, requests_of
from editkit.training.grid import save_grid
from editkit.training.method import Method
from editkit.training.over_codes import semantic


class CodeEditing(Method):
    """Edits with a trained diffusion autoencoder; a subclass names its editor.

    Args:
        backbone: the diffusion autoencoder.
        classifier: folder of a trained classifier of attributes; None can do without attributes.
        latent: folder of a trained latent DDIM, for the task `samples`.
        n_inv, n_test, step, noise, moves, shares, terminal, measure: see `CodeEditor`.
        cache: folder of the inversion cache; None = none.
        latent_steps: of the latent DDIM.
        step_counts: decoding steps that the task `reconstructions` compares.
        identity: makes the network that says how much of a person is left, for the same task.
        task_images: pictures that a task uses or makes.
        seed: of the task's noise.
        run_dir: folder that tasks write to.
    """

    editing_by: type[CodeEditor]

    def __init__(
        self,
        *,
        backbone: Backbone,
        classifier: str | None = None,
        latent: str | None = None,
        n_inv: int = 250,
        n_test: int = 100,
        step: float = 0.3,
        noise: str = "encoded",
        moves: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
        terminal: str = "published",
        measure: bool = False,
        cache: str | None = None,
        latent_steps: int = 200,
        step_counts: Sequence[int] = (10, 20, 50, 100),
        identity: Callable[[], nn.Module] | None = None,
        task_images: int = 16,
        seed: int = 0,
        run_dir: str = ".",
    ) -> None:
        super().__init__()
        self.backbone = semantic(backbone)
        self.classifier, self.latent = classifier, latent
        self.n_inv, self.n_test = n_inv, n_test
        self.editing: dict[str, Any] = {"step": step, "noise": noise, "moves": moves, "shares": shares}
        self.editing |= {"terminal": terminal, "measure": measure, "cache": InversionCache(Path(cache)) if cache else None}
        self.latent_steps, self.step_counts, self.make_identity = latent_steps, tuple(step_counts), identity
        self.task_images, self.seed, self.run_dir = task_images, seed, Path(run_dir)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: the stages train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> CodeEditor:
        """Return the editor, with the classifier if there is one.

        Raises:
            UsageError: a classifier of other codes.
        """
        return self._editor(None if self.classifier is None else self._known(AttributeClassifier.load(self.classifier)))

    def _editor(self, classifier: AttributeClassifier | None = None) -> CodeEditor:
        return self.editing_by(self.backbone, classifier, n_inv=self.n_inv, n_test=self.n_test, **self.editing)

    def _known(self, classifier: AttributeClassifier) -> AttributeClassifier:
        theirs = classifier.config["dim"], list(classifier.config.get("parts", ["code"]))
        ours = self.backbone.code_width, list(self.backbone.parts)
        if theirs != ours:
            told = " and ".join(f"{width} numbers ({', '.join(parts)})" for width, parts in (theirs, ours))
            raise UsageError(f"method.classifier={self.classifier} was trained on other codes than this backbone's: {told}")
        return classifier.to(self.backbone.device)

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return the tasks: `reconstructions`, what the code alone keeps and what code and noise keep; `samples`, new images."""
        return {"reconstructions": self._reconstructions, "samples": self._samples}

    @torch.no_grad()
    def _reconstructions(self, data: Any) -> dict[str, str]:
        """Return PSNR, and how alike the persons are, by decoding steps, on validation images."""
        requests = requests_of(data.validation_dataset(), self.task_images)
        images = images_of(requests).to(self.device)
        identity = None if self.make_identity is None else Identity(self.make_identity().to(self.device))
        faces = None if identity is None else identity.features(images)
        editor = self._editor()
        codes = self.backbone.semantic_code(images)
        keys = [request.key for request in requests]
        noises = {
            "code and noise": editor.encode(images, codes, self.n_inv),
            "code alone": batch_noise(images.shape[1:], keys, seed=self.seed, purpose="x_T", device=self.device),
        }
        figures: dict[str, str] = {}
        for title, noise in noises.items():
            for steps in self.step_counts:
                back = editor.decode(codes, noise, steps).clamp(-1, 1)
                told = f"{float(psnr(back, images).mean()):.2f} dB"
                if identity is not None:
                    told += f", identity {1 - float(identity(back, faces).mean()):.3f}"
                figures[f"{title}, {steps} steps"] = told
        if identity is not None:
            figures["other persons"] = f"identity {1 - float(identity(images.roll(1, 0), faces).mean()):.3f}"
        return figures

    @torch.no_grad()
    def _samples(self, data: Any) -> dict[str, str]:
        """Draw new images and write them as samples.png."""
        keys = [f"sample/{n}" for n in range(self.task_images)]
        noise = batch_noise(self.backbone.sample_shape, keys, seed=self.seed, purpose="x_T", device=self.device)
        images = self._editor().decode(self.sampled_codes(keys), noise, self.n_test)
        path = self.run_dir / "samples.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, path)
        return {"samples": str(path)}

    def sampled_codes(self, keys: Sequence[str]) -> Tensor:
        """Return z_sem (len(keys), dim) drawn from the latent DDIM, one for each key.

        Raises:
            UsageError: there is no latent DDIM.
        """
        if self.latent is None:
            raise UsageError("new images need a trained latent DDIM: give method.latent=FOLDER")
        prior = LatentDDIM.load(self.latent).to(self.device)
        noise = batch_noise((self.backbone.code_width,), keys, seed=self.seed, purpose="code", device=self.device)
        return prior.scale.denormalize(sample(prior, noise, prior.levels(self.latent_steps)))
