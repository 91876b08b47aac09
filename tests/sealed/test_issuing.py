"""What an issuer signs next comes from what is asked for and from verified messages alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.errors import (
    AddressRefused,
    MessageRefused,
    OriginsMissing,
    TokenForged,
    TokenMalformed,
    WrongAuthority,
)
from stateful_workflow.sealed.issuing import Place, Said, Terms, verified_place
from stateful_workflow.sealed.message import CLOCK_TOLERANCE_MS, Message, parse
from tests.support.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    ROOT,
    TOKEN,
    TREE,
    issuer,
    keyring,
    revocation,
    token,
    trusted,
)

SECONDS = NOW / 1000


def place(said: Said, *, authority: str = ROOT, name: str = "apiToken") -> Place:
    return verified_place(
        said, name=name, namespace=NAMESPACE, authority=authority, trusted=trusted("ours")
    )


def said(
    own: Message | None = None, last: Message | None = None, above: Message | None = None
) -> Said:
    own_text, last_text, above_text = (
        None if message is None else message.text for message in (own, last, above)
    )
    return Said("elsewhere", "another tree", own_text, last_text, above_text)


def sealed(**changes: object) -> Message:
    return parse(keyring().seal(replace(CLAIMS, **changes), TOKEN))  # pyright: ignore[reportArgumentType]


LIMITED = sealed(
    origins=("https://a.example.com", "https://b.example.com"),
    types=("Sync",),
    audiences=("default",),
)


def test_a_rotation_keeps_the_terms_that_a_verified_message_carries() -> None:
    claims = place(said(LIMITED)).token(Terms(), SECONDS)

    assert claims.origins == LIMITED.claims.origins
    assert claims.types == ("Sync",)
    assert claims.audiences == ("default",)
    assert claims.version == NOW + 2


def test_root_and_tree_are_those_of_the_verified_message_whatever_the_workflow_says() -> None:
    claims = place(said(LIMITED)).token(Terms(), SECONDS)
    assert (claims.root, claims.tree) == (ROOT, TREE)

    below = place(said(above=LIMITED), authority="acme-eu").revocation(SECONDS, inherit=False)
    assert (below.root, below.tree, below.authority) == (ROOT, TREE, "acme-eu")


def test_what_is_asked_for_counts_and_the_rest_is_kept() -> None:
    terms = Terms(origins=["https://c.example.com"], types="any", expires_in=60)
    claims = place(said(LIMITED)).token(terms, SECONDS)

    assert claims.origins == ("https://c.example.com",)
    assert claims.types is None
    assert claims.audiences == ("default",)
    assert claims.expires_at == int(SECONDS) + 60


def test_a_token_after_a_revocation_keeps_the_terms_of_the_one_that_was_revoked() -> None:
    revoked = revocation(NOW + 7)
    claims = place(said(revoked, LIMITED)).token(Terms(), SECONDS)

    assert claims.types == ("Sync",)
    assert claims.version == NOW + 9


A, B = "https://a.example.com", "https://b.example.com"
WILD = "https://*.example.com"
ADDRESSED = sealed(origins=(A, B), api_url=f"{A}/v1")


@pytest.mark.parametrize(
    ("held", "terms", "origins", "url"),
    [
        (ADDRESSED, Terms(), (A, B), f"{A}/v1"),
        (ADDRESSED, Terms(api_url=f"{B}/v2"), (A, B), f"{B}/v2"),
        (ADDRESSED, Terms(origins=[A]), (A,), f"{A}/v1"),
        (ADDRESSED, Terms(origins=[WILD]), (WILD,), f"{A}/v1"),
        (ADDRESSED, Terms(origins=[B], api_url=B), (B,), B),
        (ADDRESSED, Terms(origins=[]), (), None),
        (ADDRESSED, Terms(api_url="https://c.example.net/v3"), ("https://c.example.net",), ...),
        (LIMITED, Terms(), (A, B), None),
        (None, Terms(api_url=f"{A}:443/v1"), (A,), ...),
        (sealed(origins=(B,), api_url=A), Terms(), (B,), None),  # it counts as absent
    ],
)
def test_an_address_is_signed_within_the_origins_and_kept_until_another_is_given(
    held: Message | None, terms: Terms, origins: tuple[str, ...], url: str | None
) -> None:
    claims = place(said(held)).token(terms, SECONDS)

    assert claims.origins == origins
    assert claims.api_url == (terms.get("api_url") if url is ... else url)


@pytest.mark.parametrize(
    "terms",
    [
        Terms(origins=[B]),
        Terms(origins=[A], api_url=B),
        Terms(origins=[], api_url=A),
        Terms(api_url="ftp://a.example.com"),
        Terms(api_url="a.example.com"),
        Terms(api_url="http://api.internal:8080"),
        Terms(api_url="https://user@a.example.com"),
    ],
)
def test_an_address_that_the_token_would_not_be_signed_for_is_refused_where_it_is_sealed(
    terms: Terms,
) -> None:
    with pytest.raises(AddressRefused, match="address"):
        place(said(ADDRESSED)).token(terms, SECONDS)


@pytest.mark.parametrize("terms", [Terms(), Terms(types=["Sync"], readers=["default"])])
def test_where_nothing_is_verified_the_origins_must_be_given(terms: Terms) -> None:
    with pytest.raises(OriginsMissing, match="no apiToken was set at workflow acme itself"):
        place(said()).token(terms, SECONDS)
    with pytest.raises(OriginsMissing, match=issuer("stranger")):
        place(said(token(by="stranger"))).token(terms, SECONDS)
    with pytest.raises(OriginsMissing):
        place(said(sealed(namespace="another"))).token(terms, SECONDS)
    with pytest.raises(OriginsMissing):
        place(said(above=LIMITED), authority="acme-eu").token(terms, SECONDS)


def test_a_message_of_a_stranger_carries_nothing_on() -> None:
    stranger = token(NOW + CLOCK_TOLERANCE_MS - 10, by="stranger")
    claims = place(said(stranger)).token(Terms(origins=["https://c.example.com"]), SECONDS)

    assert claims.version == NOW
    assert (claims.root, claims.tree) == ("elsewhere", "another tree")  # the server confirms it


def test_a_message_of_another_place_is_not_taken_for_the_workflows_own() -> None:
    with pytest.raises(WrongAuthority):
        place(said(token(at="acme-eu")))
    with pytest.raises(WrongAuthority):
        place(said(revocation(), token(at="acme-eu")))
    with pytest.raises(TokenForged):
        place(said(token(name="billing")))


def test_a_message_whose_signature_is_not_its_issuers_is_an_error() -> None:
    header, payload, _ = LIMITED.text.split(".")
    forged = parse(".".join((header, payload, token().text.split(".")[2])))
    with pytest.raises(TokenForged):
        place(said(forged))


def test_a_version_far_ahead_of_the_clock_is_not_carried_on() -> None:
    ahead = sealed(version=NOW + 20 * 86_400_000)
    with pytest.raises(TokenMalformed, match="5 minutes ahead"):
        place(said(ahead)).token(Terms(), SECONDS)
    with pytest.raises(TokenMalformed, match="5 minutes ahead"):
        place(said(ahead)).revocation(SECONDS, inherit=False)


texts = st.one_of(
    st.none(), st.text(), st.sampled_from([LIMITED.text, revocation().text, token(at="x").text])
)


@given(st.text(), st.text(), texts, texts, texts)
def test_whatever_a_workflow_says_only_verified_terms_are_signed(
    root: str, tree: str, own: str | None, last: str | None, above: str | None
) -> None:
    try:
        claims = place(Said(root, tree, own, last, above)).token(Terms(), SECONDS)
    except (MessageRefused, OriginsMissing):
        return
    assert claims.origins == LIMITED.claims.origins
    assert (claims.types, claims.audiences) == (("Sync",), ("default",))
    assert claims.version <= NOW + CLOCK_TOLERANCE_MS
