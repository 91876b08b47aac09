"""What time it is in an activity: the server's, so that a clock of the worker's may be off."""

from __future__ import annotations

import time
from collections.abc import Callable

from temporalio import activity


def server_clock() -> Callable[[], float]:
    """A clock for the running activity: Unix seconds.

    It goes from when the server says that this attempt began. A local activity is begun by its
    worker, and goes by that one's clock.
    """
    began, started = time.monotonic(), activity.info().started_time.timestamp()
    if started <= 0:  # the server does not say
        return time.time
    return lambda: started + (time.monotonic() - began)
