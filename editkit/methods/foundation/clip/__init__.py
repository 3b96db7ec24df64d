"""CLIPs for the toy world: one of faces, whose gradients guide edits, and one of faces and scenes."""

from editkit.methods.foundation.clip.faces import ToyClip
from editkit.methods.foundation.clip.scenes import SceneClip

__all__ = ["SceneClip", "ToyClip"]
