"""Where tokens come from: `Source`, what it gives, and the sources that come with the library.

Runs in the workers of sources alone: only they hold client secrets and issuer keys. `exchanged`,
`expiry` and `now` are for sources of one's own.
"""

from .announcing import DeadGrant, Webhook
from .clock import now
from .exchange import exchanged
from .expiry import expiry
from .protocol import Grant, Minted, Narrows, Probes, Retires, Source

__all__ = [
    "DeadGrant",
    "Grant",
    "Minted",
    "Narrows",
    "Probes",
    "Retires",
    "Source",
    "Webhook",
    "exchanged",
    "expiry",
    "now",
]
