"""API tokens for trees of Temporal workflows.

Set a token once, at the root; it cascades by signals to the workflows that should
have it, sealed on the way, the newest always winning. See docs/design.md.
"""

from .client.client import TokenClient
from .client.starting import NewToken
from .errors import (
    AddressRefused,
    AnswerMalformed,
    AuditBroken,
    AuditError,
    AuditFailed,
    EngineError,
    EngineNotFound,
    IssuerLimited,
    KeyringError,
    MessageRefused,
    NewestUnknown,
    NoIssuerKey,
    NoReaderKey,
    NotConverged,
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
    WorkflowNotFound,
    WrongAuthority,
    WrongNamespace,
    WrongTree,
    WrongWorkflowType,
)
from .node.status import TokenState, TokenStatus, TokenTree, TreeNode
from .node.workflow import StatefulWorkflow
from .sealed.crypto import Opener, Signer
from .sealed.keyring import Keyring
from .sealed.keys import KeyInfo
from .sealed.message import SealedToken
from .sealed.token import ApiToken
from .use.http import AsyncOriginTransport, OriginTransport, TokenAuth
from .use.sealing import seal_token
from .use.tokens import current_api_url, current_token
from .worker.plugin import StatefulPlugin

__all__ = [
    "AddressRefused",
    "AnswerMalformed",
    "ApiToken",
    "AsyncOriginTransport",
    "AuditBroken",
    "AuditError",
    "AuditFailed",
    "EngineError",
    "EngineNotFound",
    "IssuerLimited",
    "KeyInfo",
    "Keyring",
    "KeyringError",
    "MessageRefused",
    "NewToken",
    "NewestUnknown",
    "NoIssuerKey",
    "NoReaderKey",
    "NoWorkerAnswers",
    "NotConverged",
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
    "TokenKnown",
    "TokenMalformed",
    "TokenNotSet",
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
    "WorkflowNotFound",
    "WrongAuthority",
    "WrongNamespace",
    "WrongTree",
    "WrongWorkflowType",
    "current_api_url",
    "current_token",
    "seal_token",
]
