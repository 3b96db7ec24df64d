"""CLIPs for the toy world: of faces and of faces in styles, whose gradients guide edits, and of faces and scenes."""

from editkit.methods.foundation.clip.faces import ToyClip
from editkit.methods.foundation.clip.scenes import SceneClip
from editkit.methods.foundation.clip.styles import StyleClip

__all__ = ["SceneClip", "StyleClip", "ToyClip"]
