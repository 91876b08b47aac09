"""API tokens for trees of Temporal workflows.

Set a token once, at the root; it cascades by signals to the workflows that should
have it, sealed on the way, the newest always winning. See docs/design.md.
"""

from temporalio.workflow import unsafe as _unsafe

# A runner of one's own that wraps the sandbox may let it import this package anew: what a second
# copy of the library underneath would break (the cryptographic one aborts) is then not imported.
with _unsafe.imports_passed_through():
    from .client.client import TokenClient
    from .client.starting import NewToken
    from .errors import (
        AddressRefused,
        AlreadyRunning,
        AnswerMalformed,
        AuditBroken,
        AuditError,
        AuditFailed,
        EngineError,
        EngineNotFound,
        IssuerLimited,
        JoinFailed,
        KeyringError,
        MessageRefused,
        NameNotInUse,
        NewestUnknown,
        NoIssuerKey,
        NoReaderKey,
        NotConverged,
        NotSealed,
        NotStateful,
        NoWorkerAnswers,
        OperationFailed,
        OriginNotAllowed,
        OriginsMissing,
        OutcomeUnknown,
        PluginMissing,
        StatefulError,
        TokenConflict,
        TokenExpired,
        TokenExposed,
        TokenForged,
        TokenKnown,
        TokenMalformed,
        TokenNotSet,
        TokenRevoked,
        TokenStale,
        TokenUnavailable,
        TokenWithheld,
        TooManyWaiting,
        UseRefused,
        WorkflowAsleep,
        WorkflowNotFound,
        WrongAuthority,
        WrongNamespace,
        WrongTree,
        WrongWorkflowType,
    )
    from .node.home import TokenHome
    from .node.status import TokenState, TokenStatus, TokenTree, TreeNode
    from .node.workflow import StatefulWorkflow
    from .sealed.crypto import Opener, Signer
    from .sealed.keyring import Keyring
    from .sealed.keys import KeyInfo
    from .sealed.message import SealedToken
    from .sealed.token import ApiToken
    from .use.http import AsyncOriginTransport, OriginTransport, TokenAuth
    from .use.providing import TokenProvider
    from .use.sealing import seal_token
    from .use.tokens import (
        current_api_url,
        current_token,
        current_token_async,
        report_refused,
        report_refused_async,
    )
    from .worker.plugin import StatefulPlugin

__all__ = [
    "AddressRefused",
    "AlreadyRunning",
    "AnswerMalformed",
    "ApiToken",
    "AsyncOriginTransport",
    "AuditBroken",
    "AuditError",
    "AuditFailed",
    "EngineError",
    "EngineNotFound",
    "IssuerLimited",
    "JoinFailed",
    "KeyInfo",
    "Keyring",
    "KeyringError",
    "MessageRefused",
    "NameNotInUse",
    "NewToken",
    "NewestUnknown",
    "NoIssuerKey",
    "NoReaderKey",
    "NoWorkerAnswers",
    "NotConverged",
    "NotSealed",
    "NotStateful",
    "Opener",
    "OperationFailed",
    "OriginNotAllowed",
    "OriginTransport",
    "OriginsMissing",
    "OutcomeUnknown",
    "PluginMissing",
    "SealedToken",
    "Signer",
    "StatefulError",
    "StatefulPlugin",
    "StatefulWorkflow",
    "TokenAuth",
    "TokenClient",
    "TokenConflict",
    "TokenExpired",
    "TokenExposed",
    "TokenForged",
    "TokenHome",
    "TokenKnown",
    "TokenMalformed",
    "TokenNotSet",
    "TokenProvider",
    "TokenRevoked",
    "TokenStale",
    "TokenState",
    "TokenStatus",
    "TokenTree",
    "TokenUnavailable",
    "TokenWithheld",
    "TooManyWaiting",
    "TreeNode",
    "UseRefused",
    "WorkflowAsleep",
    "WorkflowNotFound",
    "WrongAuthority",
    "WrongNamespace",
    "WrongTree",
    "WrongWorkflowType",
    "current_api_url",
    "current_token",
    "current_token_async",
    "report_refused",
    "report_refused_async",
    "seal_token",
]
