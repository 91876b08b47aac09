"""A token that stands in an environment variable of the sources' workers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import ProviderUnreachable
from .clock import now as unix_now
from .protocol import Grant, Minted
from .secret import minted


@dataclass(frozen=True)
class EnvironmentSource:
    """Gives what a variable holds at each mint; the expiry where it is a JWT.

    The grant is empty: whoever authorizes does not choose among the variables of a process that
    holds other secrets too. A variable that is missing is no refused grant, for the next worker
    may be deployed with it.

    Args:
        variable: its name.
        margin: seconds before its expiry from which the token is not to be used, yet never more
            than half of what it has left.
    """

    variable: str
    margin: float = 0

    async def mint(self, grant: Grant) -> Minted:
        """Read the variable."""
        token = os.environ.get(self.variable, "")
        if not token:
            raise ProviderUnreachable(
                f"${self.variable} is not set: start the source's worker with it"
            )
        return minted(token, {}, self.margin, unix_now())
