"""Editing with diffusion autoencoders."""

from __future__ import annotations

from editkit.training.code_editor import CodeEditor


class DiffAEEditor(CodeEditor):
    """Moves one code along attributes or towards references; with neither it reconstructs."""

    name = "diffae"
