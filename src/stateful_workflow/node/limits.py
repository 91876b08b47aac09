"""Waits and bounds of the library's own, which no user sets and which tests lower.

Those that workflow code reads decide which commands a run emits, so they are the same in every
worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    """The bounds.

    Attributes:
        many_signals: from so many on a run should continue as new: the server suggests that for
            other limits only, and lets a run take 10,000.
        trust_every_ms: milliseconds after which a node asks again for an issuer it does not know.
        request_bytes: of ids and types in one telling: the server ends a workflow that sends more
            than 2 MB.
        fresh_seconds: a token carried or asked for longer ago is asked for again before use.
        wait_seconds: how long an activity that waits for a token waits before it asks again.
        activity_question: how long an activity's question to its workflow may take.
        client_question: the same of a `TokenClient`.
        update_alone_seconds: how long an update has to be answered before the same message is
            signalled as well.
        confirm_seconds: how long it may take then to stand at the workflow.
        join_seconds: how long after its join a workflow asks to be told what is set from then on.
            Those that end sooner cost whom they joined nothing.
        joiners: how many of them one node tells.
        joiner_bytes: of the id of each, as JSON: they stand in the status and in the next run's
            header, and the server takes 2 MB.
        joins_until_a_look: so many later those that have ended are looked for.
        heal_every_ms: milliseconds between two renewals for which refusals by an API are the cause.
    """

    many_signals: int = 8_000
    trust_every_ms: int = 60_000
    request_bytes: int = 500_000
    fresh_seconds: float = 5.0
    wait_seconds: float = 1.0
    activity_question: timedelta = timedelta(seconds=5)
    client_question: timedelta = timedelta(seconds=10)
    update_alone_seconds: float = 3.0
    confirm_seconds: float = 15.0
    join_seconds: float = 5.0
    joiners: int = 1_000
    joiner_bytes: int = 1_002
    joins_until_a_look: int = 200
    heal_every_ms: int = 30_000

    @property
    def settle_seconds(self) -> float:
        """How long running activities may go on with the token before: until they ask again, and as
        long as a question may take."""
        return self.fresh_seconds + self.activity_question.total_seconds()


LIMITS = Limits()
