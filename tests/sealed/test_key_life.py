"""A key's life: who may sign what, for whom a token is sealed, and how both change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from typer.testing import CliRunner, Result

from stateful_workflow.cli.app import app
from stateful_workflow.errors import (
    IssuerLimited,
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    TokenForged,
    TokenMalformed,
    TokenRevoked,
)
from stateful_workflow.sealed import keyring_file
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.keys import Issuer, KeyInfo, verify
from stateful_workflow.sealed.message import Claims, Message, encode_base64url, parse
from tests.support.builders import CLAIMS, NAMESPACE, NOW, TOKEN, jwks, keyring_of, marked

ORIGIN = CLAIMS.origins[0]
REVOCATION = replace(CLAIMS, origins=(), inherit=False)
posix = pytest.mark.skipif(os.name != "posix", reason="permission bits")


def issuers(keyring: Keyring) -> list[KeyInfo]:
    return [key for key in keyring.keys() if key.kind == "issuer"]


def readers(keyring: Keyring) -> list[KeyInfo]:
    return [key for key in keyring.keys() if key.kind == "reader"]


def sealed(keyring: Keyring, claims: Claims = CLAIMS) -> Message:
    return parse(keyring.seal(claims, TOKEN))


def opened(keyring: Keyring, message: Message) -> str:
    return keyring.open(message, now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)


def again(keyring: Keyring) -> Keyring:
    """The same, as another process reads it from the file."""
    return Keyring.from_json(keyring.to_json())


# --- several keys in one keyring -----------------------------------------------------------------


def test_issuers_and_readers_are_added_behind_those_there_are() -> None:
    first = Keyring.generate()
    more = first.add_issuer(names=["crm"]).add_reader("crm-workers")

    assert more.keys()[:2] == first.keys()
    issuer, reader = more.keys()[2:]
    assert (issuer.kind, issuer.private, issuer.names) == ("issuer", True, ("crm",))
    assert (reader.kind, reader.private, reader.audience) == ("reader", True, "crm-workers")
    assert len(first.keys()) == 2, "a keyring does not change"


def test_what_is_said_of_a_key_survives_the_file() -> None:
    keyring = (
        Keyring()
        .add_issuer(names=["crm"], roots=["eu-"], origins=["https://*.example.com"])
        .add_issuer(names=[], roots=[], origins=[])
        .add_reader("crm-workers")
    )
    keyring = keyring.retire(keyring.keys()[0].kid).revoke(keyring.keys()[2].kid)

    assert again(keyring).keys() == keyring.keys()
    assert again(keyring.public()).trusted() == keyring.trusted()


@pytest.mark.parametrize("change", [Keyring.retire, Keyring.revoke])
def test_a_key_that_is_not_there_is_neither_retired_nor_revoked(
    change: Callable[[Keyring, str], Keyring],
) -> None:
    for key in Keyring.generate().keys():
        with pytest.raises(KeyringError, match=key.kid):
            change(Keyring.generate(), key.kid)


@pytest.mark.parametrize(
    "limits",
    [
        {"names": ["not a name"]},
        {"names": [""]},
        {"roots": [""]},
        {"roots": ["a\nb"]},
        {"origins": ["http://*.example.com"]},
        {"origins": ["https://*.com"]},
        {"origins": ["*"]},
    ],
    ids=str,
)
def test_a_malformed_limit_is_refused_also_in_a_file(limits: dict[str, list[str]]) -> None:
    with pytest.raises(KeyringError):
        Keyring().add_issuer(**limits)
    with pytest.raises(KeyringError):
        keyring_of(marked(jwks(Keyring.generate())[0], **limits))


@pytest.mark.parametrize("option", ["names", "roots", "origins"])
def test_a_limit_is_a_list_and_a_string_is_not_taken_for_its_letters(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}= takes a list"):
        Keyring().add_issuer(**{option: "crm"})
    with pytest.raises(KeyringError, match="list of strings"):
        keyring_of(marked(jwks(Keyring.generate())[0], **{option: "crm"}))


@pytest.mark.parametrize("audience", ["", "two\nlines"])
def test_a_malformed_audience_is_refused(audience: str) -> None:
    with pytest.raises(KeyringError):
        Keyring().add_reader(audience)


# --- what an issuer may sign ---------------------------------------------------------------------

WITHIN_LIMITS: dict[str, tuple[dict[str, list[str]], dict[str, Any]]] = {
    "a name": ({"names": ["crm", "erp"]}, {"name": "erp"}),
    "a root that is the prefix": ({"roots": ["eu-", "us-"]}, {"root": "us-"}),
    "an origin below a wildcard": ({"origins": ["https://*.example.com"]}, {}),
    "the wildcard itself": (
        {"origins": ["https://*.example.com"]},
        {"origins": ("https://*.example.com",)},
    ),
    "an origin in another form": ({"origins": ["HTTPS://API.example.com:443/"]}, {}),
    "no origin": ({"origins": []}, {"origins": ()}),
}
OUTSIDE: dict[str, tuple[dict[str, list[str]], dict[str, Any]]] = {
    "a name that begins alike": ({"names": ["crm"]}, {"name": "crm2"}),
    "a root that has the prefix within": ({"roots": ["eu-"]}, {"root": "us-eu-acme"}),
    "one origin of two": ({"origins": [ORIGIN]}, {"origins": (ORIGIN, "https://evil.example")}),
    "a wildcard around the origin": (
        {"origins": [ORIGIN]},
        {"origins": ("https://*.example.com",)},
    ),
    "a narrower wildcard": (
        {"origins": ["https://*.example.com"]},
        {"origins": ("https://*.api.example.com",)},
    ),
    "any name, of none": ({"names": []}, {}),
    "any root, of none": ({"roots": []}, {}),
    "any origin, of none": ({"origins": []}, {}),
    "the second of two limits": ({"names": ["crm"], "roots": ["eu-"]}, {"name": "crm"}),
}


@pytest.mark.parametrize(("limits", "change"), WITHIN_LIMITS.values(), ids=WITHIN_LIMITS)
def test_an_issuer_signs_within_its_limits(
    limits: dict[str, list[str]], change: dict[str, Any]
) -> None:
    keyring = again(Keyring().add_issuer(**limits).add_reader())
    message = sealed(keyring, replace(CLAIMS, **change))

    verify(message, keyring.trusted())
    assert opened(keyring, message) == TOKEN


@pytest.mark.parametrize(("limits", "change"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_outside_is_refused_where_it_is_sealed_judged_and_opened(
    limits: dict[str, list[str]], change: dict[str, Any]
) -> None:
    claims = replace(CLAIMS, **change)
    limited = again(Keyring().add_issuer(**limits).add_reader())
    with pytest.raises(IssuerLimited, match="its key is limited to"):
        limited.seal(claims, TOKEN)

    # Whoever has the key needs no limit to sign: so all others know it.
    unlimited = keyring_of(*(marked(key) for key in jwks(limited)))
    message = sealed(unlimited, claims)
    with pytest.raises(IssuerLimited):
        verify(message, limited.public().trusted())
    with pytest.raises(IssuerLimited):
        opened(limited, message)
    assert opened(unlimited, message) == TOKEN


@pytest.mark.parametrize("inherit", [False, True], ids=["revoke", "inherit"])
@pytest.mark.parametrize(
    "limits", [{"names": ["crm"]}, {"roots": ["eu-"], "origins": ["https://crm.example"]}], ids=str
)
def test_a_revocation_is_limited_by_names_and_roots_and_has_no_origins(
    limits: dict[str, list[str]], inherit: bool
) -> None:
    claims = replace(REVOCATION, inherit=inherit)
    limited = Keyring().add_issuer(**limits)
    with pytest.raises(IssuerLimited):
        limited.revocation(claims)
    unlimited = keyring_of(*(marked(key) for key in jwks(limited)))
    with pytest.raises(IssuerLimited):
        verify(parse(unlimited.revocation(claims)), limited.trusted())
    within = replace(claims, name="crm", root="eu-acme")
    verify(parse(limited.revocation(within)), limited.trusted())


def test_a_node_carries_the_limits_of_an_issuer_and_only_its_key_where_it_has_none() -> None:
    (limited,) = Keyring().add_issuer(names=["crm"], origins=[]).trusted().values()
    assert limited.to_json() == {"x": limited.public, "names": ["crm"], "origins": []}
    assert Issuer.from_json(json.loads(json.dumps(limited.to_json()))) == limited
    (unlimited,) = Keyring().add_issuer().trusted().values()
    assert unlimited.to_json() == unlimited.public
    assert Issuer.from_json(unlimited.public) == unlimited


@pytest.mark.parametrize(
    "change", [{"names": "crm"}, {"names": [1]}, {"names": None}, {"hosts": ["x"]}, {"x": None}]
)
def test_an_issuer_in_a_state_with_a_limit_that_is_not_understood_is_not_taken(
    change: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match=r"list of strings|public key x"):
        Issuer.from_json({"x": jwks(Keyring().add_issuer())[0]["x"], **change})


# --- which issuer signs --------------------------------------------------------------------------


def test_the_last_issuer_whose_limits_allow_is_the_one_that_signs() -> None:
    keyring = (
        Keyring()
        .add_reader()
        .add_issuer()  # 0
        .add_issuer(names=["crm"])  # 1
        .add_issuer(names=["crm"], roots=["eu-"])  # 2
        .add_issuer(origins=["https://erp.example.com"])  # 3
    )
    of = {key.kid: n for n, key in enumerate(issuers(keyring))}
    crm = replace(CLAIMS, name="crm")

    def signs(claims: Claims) -> int:
        return of[sealed(keyring, claims).issuer]

    assert signs(CLAIMS) == 0
    assert signs(crm) == 1
    assert signs(replace(crm, root="eu-acme")) == 2
    assert signs(replace(crm, origins=("https://erp.example.com",))) == 3
    assert of[parse(keyring.revocation(replace(REVOCATION, name="crm"))).issuer] == 3


def test_an_issuer_whose_private_half_is_not_here_does_not_sign_though_it_is_the_last() -> None:
    mine = Keyring.generate()
    theirs = Keyring().add_issuer().public()
    both = keyring_of(*jwks(mine), *jwks(theirs))

    assert sealed(both).issuer == issuers(mine)[0].kid


def test_the_error_says_what_the_last_issuer_with_a_private_half_is_limited_to() -> None:
    keyring = Keyring().add_reader().add_issuer(names=["old"]).add_issuer(names=["crm", "erp"])
    with pytest.raises(IssuerLimited, match=r"apiToken.*names crm, erp"):
        sealed(keyring)
    with pytest.raises(IssuerLimited, match=r"\(none\)"):
        sealed(Keyring().add_reader().add_issuer(names=[]))
    with pytest.raises(NoIssuerKey):
        sealed(Keyring().add_reader().add_issuer(names=[]).public())


# --- for whom a token is sealed ------------------------------------------------------------------


@pytest.fixture
def fleets() -> Keyring:
    """An issuer, two fleets of workers, and one of them with two keys."""
    return Keyring().add_issuer().add_reader("crm").add_reader("erp").add_reader("erp")


def sealed_for(keyring: Keyring, *audiences: str) -> list[str | None]:
    message = sealed(keyring, replace(CLAIMS, audiences=audiences))
    of = {key.kid: key.audience for key in readers(keyring)}
    return [of[kid] for kid in message.readers]


def test_the_audiences_choose_who_can_open_a_token_and_without_a_choice_it_is_all(
    fleets: Keyring,
) -> None:
    assert sealed_for(fleets, "crm") == ["crm"]
    assert sealed_for(fleets, "erp", "crm") == ["crm", "erp", "erp"]
    assert sealed(fleets).readers == tuple(key.kid for key in readers(fleets))

    message = sealed(fleets, replace(CLAIMS, audiences=("crm",)))
    assert opened(fleets.only(readers=["crm"]), message) == TOKEN
    with pytest.raises(NoReaderKey):
        opened(fleets.only(readers=["erp"]), message)


@pytest.mark.parametrize("audiences", [(), ("nobody",), ("crm", "nobody"), ("default",)], ids=str)
def test_an_audience_nobody_has_is_an_error_and_an_empty_list_is_nobody(
    fleets: Keyring, audiences: tuple[str, ...]
) -> None:
    with pytest.raises(NoReaderKey):
        sealed_for(fleets, *audiences)


@pytest.mark.parametrize("end", [Keyring.retire, Keyring.revoke])
def test_a_reader_that_is_retired_or_revoked_is_sealed_for_no_more_and_opens_what_it_has(
    fleets: Keyring, end: Callable[[Keyring, str], Keyring]
) -> None:
    before = sealed(fleets)
    first = readers(fleets)[0].kid
    later = end(fleets, first)

    assert first not in sealed(later).readers
    assert opened(later.only(readers=["crm"]), before) == TOKEN


def test_a_new_reader_gets_the_next_token_and_not_the_one_before(fleets: Keyring) -> None:
    later = fleets.add_reader("new")
    new = later.only(readers=["new"])
    with pytest.raises(NoReaderKey):
        opened(new, sealed(fleets))
    assert opened(new, sealed(later)) == TOKEN


# --- what one process is given -------------------------------------------------------------------


def private(keyring: Keyring) -> list[tuple[str, str | None]]:
    return [(key.kind, key.audience) for key in keyring.keys() if key.private]


def test_only_keeps_the_private_halves_that_are_named_and_all_public_ones(fleets: Keyring) -> None:
    given = {
        fleets.only(): [],
        fleets.public(): [],
        fleets.only(issuers=True): [("issuer", None)],
        fleets.only(readers=["crm"]): [("reader", "crm")],
        fleets.only(readers=["erp"]): [("reader", "erp")] * 2,
        fleets.only(issuers=True, readers=["crm"]): [("issuer", None), ("reader", "crm")],
    }
    for keyring, expected in given.items():
        assert private(keyring) == private(again(keyring)) == expected
        assert keyring.to_json().count('"d"') == len(expected)
        assert [replace(key, private=True) for key in keyring.keys()] == [*fleets.keys()]
        assert keyring.trusted() == fleets.trusted()
        assert keyring.revoked() == fleets.revoked()


def test_a_private_half_that_is_not_here_cannot_be_given(fleets: Keyring) -> None:
    for keyring in (fleets, fleets.only(readers=["crm"])):
        with pytest.raises(KeyringError, match="nobody"):
            keyring.only(readers=["nobody"])
    with pytest.raises(KeyringError, match="erp"):
        fleets.only(readers=["crm"]).only(readers=["erp"])
    with pytest.raises(ValueError, match="list of audiences"):
        fleets.only(readers="crm")


# --- retired, revoked, succeeded -----------------------------------------------------------------


def test_what_a_retired_issuer_signed_still_verifies_and_opens_and_it_signs_no_more() -> None:
    first = Keyring.generate()
    message = sealed(first)
    later = again(first.add_issuer().retire(issuers(first)[0].kid))

    verify(message, later.public().trusted())
    assert opened(later, message) == TOKEN
    assert sealed(later).issuer == issuers(later)[1].kid
    with pytest.raises(NoIssuerKey):
        sealed(first.retire(issuers(first)[0].kid))


@pytest.mark.parametrize("version", [NOW, NOW + 240_000, NOW - 1], ids=["now", "ahead", "old"])
def test_what_a_revoked_issuer_signed_is_refused_whatever_its_version(version: int) -> None:
    first = Keyring.generate()
    message = sealed(first, replace(CLAIMS, version=version))
    later = again(first.revoke(issuers(first)[0].kid))

    with pytest.raises(TokenRevoked, match="set the token again"):
        opened(later, message)
    with pytest.raises(TokenForged):
        verify(message, later.trusted())
    assert opened(later, sealed(later)) == TOKEN


def test_the_successor_of_an_issuer_has_its_limits_and_signs_in_its_place() -> None:
    limits: dict[str, Any] = {
        "names": ("apiToken",),
        "roots": ("ac",),
        "origins": ("https://*.example.com",),
    }
    first = Keyring().add_reader().add_issuer().add_issuer(**limits).add_issuer(names=[])
    kid = issuers(first)[1].kid
    assert sealed(first).issuer == kid

    later = first.revoke(kid)
    *_, successor = issuers(later)
    assert (successor.names, successor.roots, successor.origins) == tuple(limits.values())
    assert successor.kid != kid
    assert sealed(later).issuer == successor.kid
    assert later.revoked() == (kid,)
    assert set(later.trusted()) == {key.kid for key in issuers(later)} - {kid}


def test_the_successor_of_a_reader_has_its_audience(fleets: Keyring) -> None:
    first = readers(fleets)[0]
    later = fleets.revoke(first.kid)
    *_, successor = readers(later)

    assert (successor.kind, successor.audience, successor.private) == ("reader", "crm", True)
    assert successor.kid != first.kid
    message = sealed(later, replace(CLAIMS, audiences=("crm",)))
    assert message.readers == (successor.kid,)
    assert later.revoked() == (), "what a reader's thief has is not undone by refusing issuers"


def test_a_key_is_revoked_once_be_it_retired_or_not(fleets: Keyring) -> None:
    message = sealed(fleets)
    for key in fleets.keys()[:2]:
        later = fleets.retire(key.kid).revoke(key.kid)
        with pytest.raises(KeyringError, match="revoked already"):
            later.revoke(key.kid)
        with pytest.raises(KeyringError, match="revoked already"):
            fleets.revoke(key.kid).retire(key.kid).revoke(key.kid)
    with pytest.raises(TokenRevoked):
        opened(fleets.retire(message.issuer).revoke(message.issuer), message)


# --- private halves held elsewhere ---------------------------------------------------------------


class Signing:
    """A KMS of one issuer."""

    def __init__(self, calls: list[str]) -> None:
        key = Ed25519PrivateKey.generate()
        self.public = key.public_key().public_bytes_raw()
        self.answer: Callable[[bytes], bytes] = key.sign
        self._calls = calls

    def sign(self, data: bytes) -> bytes:
        self._calls.append("sign")
        return self.answer(data)


class Agreeing:
    """A KMS of one reader."""

    def __init__(self, calls: list[str]) -> None:
        key = X25519PrivateKey.generate()
        self.public = key.public_key().public_bytes_raw()
        self.answer: Callable[[bytes], bytes] = lambda public: key.exchange(
            X25519PublicKey.from_public_bytes(public)
        )
        self._calls = calls

    def agree(self, public: bytes) -> bytes:
        self._calls.append("agree")
        return self.answer(public)


class Held:
    """Both, with what is asked of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.signer, self.opener = Signing(self.calls), Agreeing(self.calls)

    def keyring(self) -> Keyring:
        """Their public halves."""
        keys = {"Ed25519": self.signer.public, "X25519": self.opener.public}
        return keyring_of(
            *({"kty": "OKP", "crv": curve, "x": encode_base64url(x)} for curve, x in keys.items())
        )


def test_a_signer_and_an_opener_are_all_that_is_needed_to_seal_and_open() -> None:
    held = Held()
    sealing = held.keyring().with_signer(held.signer)
    opening = held.keyring().with_opener(held.opener)

    message = sealed(sealing)
    assert held.calls == ["sign"]
    verify(message, held.keyring().trusted())
    assert opened(opening, message) == TOKEN
    assert held.calls == ["sign", "agree"]
    verify(parse(sealing.revocation(REVOCATION)), held.keyring().trusted())
    for keyring, error in ((opening, NoIssuerKey), (held.keyring(), NoIssuerKey)):
        with pytest.raises(error):
            sealed(keyring)
    with pytest.raises(NoReaderKey):
        opened(sealing, message)


def test_what_another_keyring_sealed_opens_with_an_opener_and_the_other_way_round() -> None:
    held = Held()
    mine = Keyring.generate()
    both = keyring_of(*jwks(mine), *jwks(held.keyring()))

    assert opened(both.public().with_opener(held.opener), sealed(both)) == TOKEN
    assert opened(both, sealed(both.public().with_signer(held.signer))) == TOKEN


def test_a_held_key_is_private_here_and_its_private_half_is_nowhere() -> None:
    held = Held()
    keyring = held.keyring().with_signer(held.signer).with_opener(held.opener)

    assert private(keyring) == [("issuer", None), ("reader", "default")]
    assert '"d"' not in keyring.to_json()
    assert private(again(keyring)) == []
    assert keyring.trusted() == held.keyring().trusted()
    assert private(keyring.public()) == []
    assert opened(keyring.only(readers=["default"]), sealed(keyring)) == TOKEN


def test_a_held_issuer_is_limited_retired_and_revoked_like_any_other() -> None:
    held = Held()
    issuer, reader = jwks(held.keyring())
    keyring = keyring_of(marked(issuer, names=["crm"]), reader)
    keyring = keyring.with_signer(held.signer).with_opener(held.opener)
    with pytest.raises(IssuerLimited):
        sealed(keyring)
    assert held.calls == [], "nothing is signed that may not be"

    crm = replace(CLAIMS, name="crm")
    message = sealed(keyring, crm)
    with pytest.raises(NoIssuerKey):
        sealed(keyring.retire(message.issuer), crm)
    assert opened(keyring.retire(message.issuer), message) == TOKEN
    later = keyring.revoke(message.issuer)
    with pytest.raises(TokenRevoked):
        opened(later, message)
    assert sealed(later, crm).issuer == issuers(later)[1].kid


def test_a_holder_whose_key_is_not_in_the_keyring_is_refused() -> None:
    keyring, stranger = Held().keyring(), Held()
    with pytest.raises(KeyringError, match="no issuer"):
        keyring.with_signer(stranger.signer)
    with pytest.raises(KeyringError, match="no reader"):
        keyring.with_opener(stranger.opener)


@pytest.mark.parametrize("answer", [b"", bytes(63), bytes(64)], ids=len)
def test_a_signer_that_does_not_sign_with_its_key_makes_no_message(answer: bytes) -> None:
    held = Held()
    held.signer.answer = lambda _: answer
    with pytest.raises(KeyringError, match="did not sign as it"):
        sealed(held.keyring().with_signer(held.signer))


@pytest.mark.parametrize("answer", [b"", bytes(32), b"x" * 31, b"x" * 32, b"x" * 65], ids=str)
def test_an_opener_that_does_not_agree_with_its_key_opens_nothing(answer: bytes) -> None:
    # All zeros: the other key was of low order (RFC 7748 section 6.1).
    held = Held()
    message = sealed(held.keyring().with_signer(held.signer))
    held.opener.answer = lambda _: answer
    is_secret = len(answer) == 32
    error, said = (TokenMalformed, "not decrypt") if is_secret else (KeyringError, "32 bytes")
    with pytest.raises(error, match=said):
        opened(held.keyring().with_opener(held.opener), message)


def test_what_a_holder_raises_comes_through_so_that_an_activity_is_retried() -> None:
    held = Held()
    message = sealed(held.keyring().with_signer(held.signer))

    def down(_: bytes) -> bytes:
        raise ConnectionError("the service is down")

    held.opener.answer = down
    with pytest.raises(ConnectionError, match="the service is down"):
        opened(held.keyring().with_opener(held.opener), message)


def test_holders_stay_with_their_keys_when_the_file_changes(tmp_path: Path) -> None:
    held = Held()
    path = tmp_path / "public.json"
    held.keyring().save(path)
    keyring = Keyring.load(path).with_signer(held.signer).with_opener(held.opener)
    message = sealed(keyring)

    Keyring.change_file(path, lambda keyring: keyring.add_reader("new").public())
    assert len(sealed(keyring.load_again()).readers) == 2
    assert opened(keyring.load_again(), message) == TOKEN

    Keyring.change_file(path, lambda keyring: keyring.retire(message.issuer))
    assert opened(keyring.load_again(), message) == TOKEN
    with pytest.raises(NoIssuerKey):
        sealed(keyring.load_again())

    Keyring.change_file(path, lambda keyring: keyring.revoke(message.issuer).public())
    with pytest.raises(TokenRevoked):
        opened(keyring.load_again(), message)


# --- the commands --------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATEFUL_KEYRING", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


def keys(*arguments: str | Path, keyring: Path) -> Result:
    words = ["keys", *(str(argument) for argument in arguments), "--keyring", str(keyring)]
    return CliRunner().invoke(app, words)


def shown(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    listed: list[dict[str, Any]] = json.loads(result.stdout)
    return listed


def refused(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_keys_add_issuer_adds_one_with_its_limits_or_for_everything(file: Path) -> None:
    listed = shown(
        keys(
            *("add-issuer", "--name", "crm", "--name", "erp", "--root", "eu-"),
            *("--origin", "https://*.Example.com", "--json"),
            keyring=file,
        )
    )

    assert listed[-1] == {
        "kid": issuers(Keyring.load(file))[1].kid,
        "kind": "issuer",
        "private": True,
        "retired": False,
        "revoked": False,
        "names": ["crm", "erp"],
        "roots": ["eu-"],
        "origins": ["https://*.example.com"],
        "audience": None,
    }
    assert shown(keys("list", "--json", keyring=file)) == listed
    assert shown(keys("add-issuer", "--json", keyring=file))[-1]["names"] is None
    table = keys("list", keyring=file).stdout
    assert "names crm erp; roots eu-; origins https://*.example.com" in table
    assert table.count("everything") == 2


def test_keys_add_reader_adds_one_for_an_audience(file: Path) -> None:
    listed = shown(keys("add-reader", "--audience", "crm-workers", "--json", keyring=file))
    assert (listed[-1]["kind"], listed[-1]["audience"]) == ("reader", "crm-workers")
    assert shown(keys("add-reader", "--json", keyring=file))[-1]["audience"] == "default"
    assert "audience crm-workers" in keys("list", keyring=file).stdout
    assert len(readers(Keyring.load(file))) == 3


@pytest.mark.parametrize("digits", [6, 10, 43])
def test_keys_retire_takes_a_key_id_or_its_beginning(file: Path, digits: int) -> None:
    kid = issuers(Keyring.load(file))[0].kid
    listed = shown(keys("retire", kid[:digits], "--json", keyring=file))

    assert [key["retired"] for key in listed] == [True, False]
    assert "retired" in keys("list", keyring=file).stdout


def test_keys_revoke_marks_a_key_and_makes_its_successor(file: Path) -> None:
    Keyring.change_file(file, lambda keyring: keyring.add_issuer(names=["crm"]))
    kid = issuers(Keyring.load(file))[1].kid
    listed = shown(keys("revoke", kid, "--json", keyring=file))

    assert [(key["kind"], key["revoked"], key["names"]) for key in listed] == [
        ("issuer", False, None),
        ("reader", False, None),
        ("issuer", True, ["crm"]),
        ("issuer", False, ["crm"]),
    ]
    assert Keyring.load(file).revoked() == (kid,)
    assert "revoked already" in refused(keys("revoke", kid, keyring=file))


@pytest.mark.parametrize("command", ["retire", "revoke"])
def test_a_key_id_that_is_unknown_short_or_ambiguous_changes_nothing(
    file: Path, command: str
) -> None:
    before = file.read_bytes()
    kid = issuers(Keyring.load(file))[0].kid
    assert "first 6 or more" in refused(keys(command, kid[:5], keyring=file))
    assert "0 keys" in refused(keys(command, "x" * 43, keyring=file))
    assert "first 6 or more" in refused(keys(command, "", keyring=file))
    assert file.read_bytes() == before


# The ids of the keys made of these numbers begin so.
HYPHENS = {"-": 44, "--": 2596}


@pytest.mark.parametrize("digits", [6, 43])
@pytest.mark.parametrize("command", ["retire", "revoke"])
@pytest.mark.parametrize("hyphens", HYPHENS)
def test_a_key_id_may_begin_with_a_hyphen(
    tmp_path: Path, hyphens: str, command: str, digits: int
) -> None:
    secret = hashlib.sha256(str(HYPHENS[hyphens]).encode()).digest()
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    x, d = encode_base64url(public), encode_base64url(secret)
    file = tmp_path / "keyring.json"
    keyring_of({"kty": "OKP", "crv": "Ed25519", "x": x, "d": d}).save(file)
    (key,) = Keyring.load(file).keys()
    assert key.kid.startswith(hyphens)

    listed = shown(keys(command, key.kid[:digits], "--json", keyring=file))

    assert listed[0][f"{command}d"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ("add-issuer", "--origin", "http://*.example.com"),
        ("add-issuer", "--name", "not a name"),
        ("add-issuer", "--root", ""),
        ("add-reader", "--audience", ""),
    ],
    ids=str,
)
def test_a_malformed_limit_or_audience_changes_nothing(
    file: Path, arguments: tuple[str, ...]
) -> None:
    before = file.read_bytes()
    refused(keys(*arguments, keyring=file))
    assert file.read_bytes() == before


def test_no_command_shows_a_private_half(file: Path) -> None:
    kid = issuers(Keyring.load(file))[0].kid
    said = [
        keys("add-issuer", keyring=file),
        keys("add-reader", "--json", keyring=file),
        keys("retire", kid, keyring=file),
        keys("revoke", kid, "--json", keyring=file),
        keys("export", file.with_name("worker.json"), "--issuers", keyring=file),
        keys("list", keyring=file),
    ]
    secrets = [key["d"] for key in json.loads(file.read_text())["keys"]]
    assert len(secrets) == 5
    for result in said:
        assert result.exit_code == 0
        assert not any(secret in result.output for secret in secrets)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), []),
        (("--issuers",), [("issuer", None)]),
        (("--reader", "crm"), [("reader", "crm")]),
        (("--reader", "crm", "--reader", "default"), [("reader", "default"), ("reader", "crm")]),
        (("--issuers", "--reader", "crm"), [("issuer", None), ("reader", "crm")]),
    ],
    ids=str,
)
def test_keys_export_writes_what_one_process_is_given(
    file: Path, options: tuple[str, ...], expected: list[tuple[str, str | None]]
) -> None:
    Keyring.change_file(file, lambda keyring: keyring.add_reader("crm"))
    target = file.with_name("worker.json")
    listed = shown(keys("export", target, *options, "--json", keyring=file))

    given = Keyring.load(target)
    assert private(given) == expected
    assert [key["kid"] for key in listed] == [key.kid for key in Keyring.load(file).keys()]
    assert [key["private"] for key in listed] == [key.private for key in given.keys()]


def test_keys_export_replaces_a_keyring_only_where_told(file: Path) -> None:
    target = file.with_name("worker.json")
    shown(keys("export", target, "--reader", "default", "--json", keyring=file))
    before = target.read_bytes()
    Keyring.change_file(file, Keyring.add_issuer)

    assert "--replace" in refused(keys("export", target, "--reader", "default", keyring=file))
    assert target.read_bytes() == before
    shown(keys("export", target, "--reader", "default", "--replace", "--json", keyring=file))
    assert len(Keyring.load(target).keys()) == 3
    shown(keys("export", file.with_name("new.json"), "--replace", "--json", keyring=file))


def test_keys_export_refuses_an_unknown_audience_and_replaces_nothing_but_a_keyring(
    file: Path,
) -> None:
    target = file.with_name("worker.json")
    assert "nobody" in refused(keys("export", target, "--reader", "nobody", keyring=file))
    assert not target.exists()
    target.write_text("mine")
    refused(keys("export", target, "--replace", keyring=file))
    assert target.read_text() == "mine"


@posix
@pytest.mark.parametrize("command", ["add-issuer", "add-reader", "retire", "revoke", "export"])
def test_a_command_waits_for_another_that_changes_the_same_file_and_gives_up(
    file: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(keyring_file, "LOCK_SECONDS", 0.05)
    before = file.read_text()
    kid = Keyring.load(file).keys()[0].kid
    more = {"retire": [kid], "revoke": [kid], "export": ["--replace", str(file)]}
    words = [command, *more.get(command, ())]

    with keyring_file.locked(file):
        failed = keys(*words, keyring=file)

    assert failed.exit_code == 1
    assert f"fuser {file}.lock" in failed.output
    assert file.read_text() == before
    shown(keys(*words, "--json", keyring=file))


def test_an_export_reads_the_keyring_when_it_is_its_turn_to_write(file: Path) -> None:
    target = file.with_name("worker.json")
    Keyring.load(file).public().save(target)
    with ThreadPoolExecutor() as pool:
        with keyring_file.locked(target):
            exporting = pool.submit(keys, "export", str(target), "--replace", keyring=file)
            after = Keyring.change_file(file, Keyring.add_issuer)
        assert exporting.result().exit_code == 0
    assert Keyring.load(target).keys() == after.public().keys()
