"""What the paper's training takes of a 24 GB card."""

from __future__ import annotations

import pytest

from tests.benchmarks.tuning_memory import GIB, ROWS, parts


@pytest.mark.slow
def test_the_papers_training_fits_a_card_of_24_gb_and_the_options_spare_what_they_say():
    whole, eight_bit, low_rank = (parts(overrides) for overrides in ROWS.values())
    assert whole["weights"] == 4 * 859_532_484 and whole["activations"] > 0.5 * GIB
    total = sum(whole.values())
    assert total < 22 * GIB, {name: f"{size / GIB:.2f} GiB" for name, size in whole.items()}
    assert total + whole["weights"] > 22 * GIB, "with the average on the card as well there would be no room left"
    assert eight_bit | {"Adam": 0} == whole | {"Adam": 0} and eight_bit["Adam"] < 0.26 * whole["Adam"]
    assert low_rank["gradients"] + low_rank["Adam"] < 0.1 * GIB and sum(low_rank.values()) < 11 * GIB
    assert low_rank["activations"] < 1.1 * whole["activations"]
