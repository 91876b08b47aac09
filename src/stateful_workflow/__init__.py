"""API tokens for trees of Temporal workflows.

Set a token once, at the root; it cascades by signals to the workflows that should
have it, sealed on the way, the newest always winning. See docs/design.md.
"""

from .activity import current_api_url, current_token, seal_token
from .client import TokenClient
from .errors import (
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
    TokenMalformed,
    TokenNotSet,
    TokenRevoked,
    TokenStale,
    TokenUnavailable,
    TokenWithheld,
    UseRefused,
    WorkflowNotFound,
    WrongAuthority,
    WrongNamespace,
    WrongTree,
    WrongWorkflowType,
)
from .http import AsyncOriginTransport, OriginTransport, TokenAuth
from .jose import Opener, Signer
from .keyring import Keyring
from .keys import KeyInfo
from .messages import SealedToken
from .plugin import StatefulPlugin
from .status import TokenState, TokenStatus, TokenTree, TreeNode
from .tokens import ApiToken
from .workflow import StatefulWorkflow

__all__ = [
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
    "TokenMalformed",
    "TokenNotSet",
    "TokenRevoked",
    "TokenStale",
    "TokenState",
    "TokenStatus",
    "TokenTree",
    "TokenUnavailable",
    "TokenWithheld",
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
