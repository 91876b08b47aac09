"""What time it is in an activity: the server's, so that a clock of the worker's may be off."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from temporalio import activity

_ON_THE_WAY: Final = 5.0
"""Seconds that an attempt may have been on its way from the server: on a busy machine."""


def server_clock() -> Callable[[], float]:
    """A clock for the running activity: Unix seconds.

    It goes from when the server says that this attempt began, and by the worker's clock where that
    is a little ahead of it, as it is by the time that the attempt was on its way: no token is used
    for so much longer. A local activity is begun by its worker, and goes by that one's clock.
    """
    began, started = time.monotonic(), activity.info().started_time.timestamp()
    if started <= 0:  # the server does not say
        return time.time
    ahead = time.time() - started
    began -= min(max(ahead, 0.0), _ON_THE_WAY)
    return lambda: started + (time.monotonic() - began)
