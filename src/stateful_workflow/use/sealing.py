"""Seal a token in an activity of an issuer."""

from __future__ import annotations

from contextlib import suppress

from typing_extensions import Unpack

from ..errors import StatefulError, WrongTree
from ..sealed.issuing import Place, Said, Terms, TokenTerms, given_secret, parted, verified_place
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME, SealedToken, parse
from .telling import Asking
from .tokens import ActivityTokens, activity_tokens


def seal_token(
    token: str | None = None, *, name: str = DEFAULT_NAME, **terms: Unpack[TokenTerms]
) -> SealedToken:
    """Seal a token in an activity of an issuer, for the workflow's `set_api_token`.

    Only the sealed form returns to the workflow, so no clear text enters history.

    Args:
        token: the secret; None with ``reference=``.
        name, terms: as `TokenClient.set`; what stands there is what was set at this workflow.

    Raises:
        PluginMissing: see `current_token`; the workflow scheduled the activity before it was a
            StatefulWorkflow. Let it schedule it anew, or set the token with a `TokenClient`.
        KeyringError, NoIssuerKey, IssuerLimited, NoReaderKey: this worker may not seal it, or
            for nobody.
        OriginsMissing: no origins are given, and no verified token stands there.
        AddressRefused: the address is none, or not within the origins.
        MessageRefused: what came with the activity is not to be believed.
        ValueError: an origin is refused, the expiry is not ahead, or there is no secret.
        TokenMalformed: the token is empty, no text, or too large.
        AuditFailed: it cannot be put on record (see `StatefulPlugin`).
    """
    secret = given_secret(token, terms.pop("reference", None))
    (asked,) = parted(terms, Terms)
    tokens = activity_tokens()
    try:
        keyring = tokens.keyring()
        place = _place(tokens, name, keyring)
        sealed = keyring.seal(place.token(asked, tokens.newest.clock()), secret)
    except StatefulError as error:
        failed = tokens.event("set", "failure", name, None, reason=type(error).__name__)
        tokens.recorder.record(failed)
        raise
    tokens.recorder.require(tokens.event("set", "unknown", name, parse(sealed)))
    return sealed


def _place(tokens: ActivityTokens, name: str, keyring: Keyring) -> Place:
    """Where a token that is sealed here is set, and the verified message that stands there."""
    use, message = tokens.place, tokens.newest.standing(name).message
    above = None if message is None else message.text
    own = use.own.get(name)
    if own is None and message is not None and message.claims.authority == tokens.workflow_id:
        own = message.text
    place = verified_place(
        Said(use.root, use.tree, own, use.last.get(name), above),
        name=name,
        namespace=tokens.info.namespace,
        authority=tokens.workflow_id,
        trusted=keyring.trusted(),
    )
    if place.root != tokens.confirmed_root:
        raise WrongTree(
            f"the server does not say that workflow {place.authority} stands below "
            f"{place.root}; nothing was signed"
        )
    return place


async def confirm_root(tokens: ActivityTokens, asking: Asking) -> None:
    """Where a token may be sealed here, ask the server for the root of the workflow's tree.

    Only an issuer's worker asks, once for each run of a workflow.
    """
    run_id = tokens.info.workflow_run_id
    if tokens.use is None or run_id is None:
        return
    with suppress(StatefulError):
        if tokens.keyring().can_seal:
            await asking.confirm_root(tokens.workflow_id, run_id, tokens.use.root)
            tokens.confirmed_root = tokens.use.root
