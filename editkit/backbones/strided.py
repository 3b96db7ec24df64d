"""The times that the published code of diffusion autoencoders queries."""

from __future__ import annotations

import math
from dataclasses import replace

from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from editkit.types import Levels


def strided_levels(schedule: Schedule, n: int, start: int | None = None) -> Levels:
    """Return levels of n queries from time 0 on, an image placed at the first of them.

    As in the published code every ceil(1000 / n)th time is queried, if n times of that stride fit; it refuses other n, here
    they are as evenly spread as whole times can be.

    Raises:
        UsageError: more queries than there are times, or none.
    """
    count = len(schedule) if start is None else start + 1
    if not 1 <= n <= count:
        raise UsageError(f"{n} steps do not fit the {count} times of this model: use 1 to {count}")
    stride = math.ceil(count / n)
    times = [k * stride for k in range(n)]
    if times[-1] >= count:
        times = [k * count // n for k in range(n)]
    return schedule.levels_at(times, entry=1)


def to_pure_noise(levels: Levels) -> Levels:
    """Return levels with one more at the noisy end, which holds no signal: the published code encodes up to there.

    The state is then the last eps itself; decoding takes it for the state at the noisiest level that is queried.
    """
    return replace(levels, alpha_bar=(*levels.alpha_bar, 0.0), times=(*levels.times, levels.times[-1] + 1))
