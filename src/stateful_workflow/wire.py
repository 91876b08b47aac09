"""The names of the wire contract; they stand in histories, so they never change."""

from __future__ import annotations

from typing import Final

MESSAGE: Final = "apiToken"
"""Signal and update that take a message, and the query for a status with the sealed token."""

STATUS_QUERY: Final = "apiTokenStatus"
STATE_QUERY: Final = "statefulState"
URL: Final = "apiUrl"
REPORT: Final = "apiTokenReport"

FORWARD: Final = "statefulForward"
ASK: Final = "statefulAsk"
TRUST: Final = "statefulTrust"
RECOVER: Final = "statefulRecover"
ACTIVITIES: Final = frozenset({FORWARD, ASK, TRUST, RECOVER})

NODE_HEADER: Final = "stateful-node"
USE_HEADER: Final = "stateful-use"
