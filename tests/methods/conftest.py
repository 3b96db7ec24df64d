"""What tests of several methods begin with."""

from __future__ import annotations

import pytest

from tests.methods.asyrp_parts import tiny_backbone
from tests.methods.diffusionclip_parts import stirred


@pytest.fixture(scope="module")
def backbone():
    """A tiny model of pixels with random weights."""
    return tiny_backbone()


@pytest.fixture(scope="module")
def tuned(backbone):
    """A copy of it that is a little different, as if it had been fine-tuned."""
    return stirred(backbone)
