"""The errors of the library, one hierarchy.

No message of these errors holds a token. In workflow code and update handlers
each of them fails the workflow or the update (the plugin registers
`StatefulError` as a failure type), never the workflow task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node.renewal import SourceStatus
    from .node.status import TokenTree


class StatefulError(Exception):
    """Base of every error this library raises on purpose."""


class MessageRefused(StatefulError):
    """A node, a client or an activity did not take a signed message."""


class TokenMalformed(MessageRefused):
    """The message is not in the wire format (see docs/wire-format.md)."""


class NotSealed(TokenMalformed):
    """A signal brought what has not the form of a message: it may be a token in clear text."""


class TokenForged(MessageRefused):
    """The signature is not that of an issuer who is trusted here."""


class IssuerLimited(TokenForged):
    """The issuer's key is limited to other names, roots or origins than these."""


class TokenKnown(MessageRefused):
    """The node holds this very message already; nothing is to be done."""


class TokenStale(MessageRefused):
    """The same issuer has set a newer message at this authority."""


class TokenConflict(MessageRefused):
    """Another issuer's newer message stands at this authority."""


class TokenWithheld(MessageRefused):
    """The node was started without this credential; it takes only what is set at itself."""


class TooManyWaiting(MessageRefused):
    """Too many updates of issuers that are not known here wait already; signal it instead."""


class NotRenewable(MessageRefused):
    """No source mints this credential here, or somebody has to authorize it first."""


class WrongTree(MessageRefused):
    """The message was made for another tree, or for an earlier one of the same workflow id."""


class WrongAuthority(MessageRefused):
    """The message was set at a workflow that is neither this node nor above it."""


class JoinFailed(StatefulError):
    """A workflow could not join the tree that its code names; the message says why."""


class TokenUnavailable(StatefulError):
    """There is no token to use."""


class TokenNotSet(TokenUnavailable):
    """No token of this name was set at this workflow or above it.

    Attributes:
        withheld: the workflow was started without it, so that trying again changes nothing: an
            activity that ends with this error is not retried.
    """

    def __init__(self, message: str, *, withheld: bool = False) -> None:
        super().__init__(message)
        self.withheld = withheld


class TokenRevoked(TokenUnavailable):
    """The token, or the key of the issuer who signed it, was revoked."""


class TokenExpired(TokenUnavailable):
    """The token is past the expiry its issuer signed."""


class NewestUnknown(TokenUnavailable):
    """A retried activity could not ask its workflow for the newest token."""


class ReferenceUnresolved(TokenUnavailable):
    """A reference stands in the place of the token, and did not lead to one here.

    Attributes:
        reference: it, ``PREFIX:NAME``; the message does not hold it.
    """

    def __init__(self, message: str, reference: str = "") -> None:
        super().__init__(message)
        self.reference = reference


class UseRefused(StatefulError):
    """The token exists, but its issuer did not sign it for this use."""


class OriginNotAllowed(UseRefused):
    """The request's origin is not among the token's signed origins."""


class WrongNamespace(UseRefused):
    """The token was sealed for another Temporal namespace."""


class WrongWorkflowType(UseRefused):
    """The issuer signed the token for activities of other workflow types only."""


class TokenExposed(StatefulError):
    """A result or a heartbeat of an activity held a token that the activity had opened."""


class KeyringError(StatefulError):
    """A keyring file is missing, unreadable, malformed or open to others."""


class NoIssuerKey(KeyringError):
    """Sealing needs the private key of an issuer, and the keyring has none."""


class NoReaderKey(KeyringError):
    """Opening needs the private key of a reader the token was sealed for."""


class OperationFailed(StatefulError):
    """A `TokenClient` call did not do what was asked."""


class WorkflowNotFound(OperationFailed):
    """No workflow has this id in the namespace, or it is closed."""


class NotStateful(OperationFailed):
    """The workflow exists but is not a `StatefulWorkflow`."""


class NoWorkerAnswers(OperationFailed):
    """No worker answered for the workflow in time."""


class WorkflowAsleep(NoWorkerAnswers):
    """The workflow waits for its next run or its first one, or is paused; signals wait for it.

    Attributes:
        until: Unix seconds at which it goes on; None where it is paused.
    """

    def __init__(self, message: str, until: float | None) -> None:
        super().__init__(message)
        self.until = until


class AlreadyRunning(OperationFailed):
    """The workflow ran already, so the token that it was to be started with was not set."""


class AnswerMalformed(OperationFailed):
    """What a workflow answered to a query or an update is not in the wire format, or too large."""


class NameNotInUse(OperationFailed):
    """No credential of this name is in use in the tree, and others are: it may be mistyped."""


class OriginsMissing(OperationFailed):
    """No origins were given, and no token stands there whose origins could be kept."""


class AddressRefused(StatefulError, ValueError):
    """An API address is no URL that a token may go to, or not within the signed origins."""


class OutcomeUnknown(OperationFailed):
    """The call may still be applied; repeating it is harmless."""


class NotConverged(OperationFailed):
    """Not every node held the newest version within the timeout.

    Attributes:
        tree: the tree as it was last seen; its nodes say which are behind.
    """

    def __init__(self, message: str, tree: TokenTree) -> None:
        super().__init__(message)
        self.tree = tree


class SourceError(StatefulError):
    """A source of tokens did not do what was asked.

    Attributes:
        reached: the provider may have got the request and done as it asks, though nobody knows its
            answer.
    """

    reached = False


class GrantRefused(SourceError):
    """The provider says that the grant is good no more: somebody has to authorize again."""


class ProviderUnreachable(SourceError):
    """The provider could not be asked, or has answered that it cannot serve now.

    Attributes:
        reached: as `SourceError`; such as where a gateway gave up waiting.
    """

    def __init__(self, message: str, *, reached: bool = False) -> None:
        super().__init__(message)
        self.reached = reached


class RateLimited(SourceError):
    """The provider asks for patience.

    Attributes:
        retry_after: seconds after which it may be asked again (RFC 9110 section 10.2.3), or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AnswerUnusable(SourceError):
    """The provider's answer is no answer to what was asked, or one that only an operator can mend.

    Attributes:
        reached: as `SourceError`; False where it has said that it did not do it.
    """

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class ReplyLost(SourceError):
    """The request was sent, and no answer came back."""

    reached = True


class TokenRefused(SourceError):
    """The provider does not take the token."""


class NotRenewed(OperationFailed):
    """A source had not minted a new token in time, or the old one was not retired.

    Attributes:
        status: what is known of the source at the workflow.
    """

    def __init__(self, message: str, status: SourceStatus) -> None:
        super().__init__(message)
        self.status = status


class AuditError(StatefulError):
    """The record of what happens to tokens cannot be written or read."""


class AuditFailed(AuditError):
    """An event could not be recorded, so what it was to tell of was not done."""


class AuditBroken(AuditError):
    """A file of events was changed, cut or reordered after it was written."""


class PluginMissing(StatefulError):
    """A worker or an activity without `StatefulPlugin`, or an activity in a process pool."""


class EngineError(StatefulError):
    """The embedded engine could not be started."""


class EngineNotFound(EngineError):
    """The `temporal` program is neither beside the interpreter nor on PATH."""
