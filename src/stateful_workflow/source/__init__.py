"""Where tokens come from: `Source`, what it gives, and the sources that come with the library.

Runs in the workers of sources alone: only they hold client secrets and issuer keys.
"""

from .protocol import Grant, Minted, Narrows, Probes, Retires, Source

__all__ = ["Grant", "Minted", "Narrows", "Probes", "Retires", "Source"]
