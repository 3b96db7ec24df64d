"""Networks of diffusers written to folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_part(part: Any, folder: Path) -> None:
    """Write a network, a scheduler or a tokenizer as its library does, but for the path that it was once loaded from."""
    part.save_pretrained(folder)
    config = folder / "config.json"
    if config.exists():
        kept = {name: value for name, value in json.loads(config.read_text(encoding="utf-8")).items() if name != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
