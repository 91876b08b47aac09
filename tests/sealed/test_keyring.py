"""Keys: who may seal and who may open, and what a keyring must look like."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stateful_workflow.errors import (
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    StatefulError,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    TokenRevoked,
    WrongWorkflowType,
)
from stateful_workflow.sealed.crypto import Key, encrypt
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.keys import Issuer, verify
from stateful_workflow.sealed.message import (
    MAX_MESSAGE_BYTES,
    MAX_RECIPIENTS,
    Message,
    encode_base64url,
    parse,
)
from tests.support.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    TOKEN,
    Json,
    compact,
    header_of,
    issuer,
    jwks,
    keyring,
    keyring_of,
    marked,
    revocation,
    signed,
    token,
    trusted,
)

SECONDS = NOW // 1000
REVOCATION = replace(CLAIMS, origins=(), inherit=False)


def opened(
    keys: Keyring,
    message: Message,
    *,
    now: float = SECONDS,
    namespace: str = NAMESPACE,
    workflow_type: str | None = "Sync",
) -> str:
    return keys.open(message, now=now, namespace=namespace, workflow_type=workflow_type)


def halves(owner: str = "ours") -> tuple[Json, Json]:
    """An owner's issuer and reader as JWKs."""
    issuer, reader = jwks(keyring(owner))
    return issuer, reader


def without(key: Json, member: str) -> Json:
    return {name: value for name, value in key.items() if name != member}


def public_half(key: Json) -> Json:
    return without(key, "d")


# --- sealing and opening ---------------------------------------------------------


def test_a_new_keyring_has_one_issuer_and_one_reader_with_their_private_halves() -> None:
    keys = Keyring.generate().keys()

    assert [key.kind for key in keys] == ["issuer", "reader"]
    assert all(key.private and key.is_active for key in keys)
    assert {key.kid for key in keys}.isdisjoint(key.kid for key in Keyring.generate().keys())


@pytest.mark.parametrize("secret", [TOKEN, "x", "ä€😀", "a b\tc", "\x00", "x" * 8000])
def test_any_text_may_be_the_secret_and_what_is_sealed_opens(secret: str) -> None:
    message = parse(keyring().seal(CLAIMS, secret))

    verify(message, keyring().trusted())
    assert opened(keyring(), message) == secret


def test_two_seals_of_one_token_differ_and_hide_it() -> None:
    first, second = keyring().seal(CLAIMS, TOKEN), keyring().seal(CLAIMS, TOKEN)

    assert first != second
    assert TOKEN not in parse(first).payload.decode()


@pytest.mark.parametrize("count", [2, MAX_RECIPIENTS])
def test_a_token_is_sealed_for_every_reader_and_each_opens_it_alone(count: int) -> None:
    owners = ["ours", *(f"reader {number}" for number in range(1, count))]
    readers = [halves(owner)[1] for owner in owners]
    sender = keyring_of(halves()[0], *map(public_half, readers))

    message = parse(sender.seal(CLAIMS, TOKEN))

    assert len(message.readers) == count
    for reader in (readers[0], readers[-1]):
        assert opened(keyring_of(public_half(halves()[0]), reader), message) == TOKEN


def test_a_revocation_is_signed_and_opens_to_nothing() -> None:
    message = parse(keyring().revocation(REVOCATION))

    verify(message, keyring().trusted())
    with pytest.raises(TokenRevoked):
        opened(keyring(), message)


def test_the_claims_of_one_kind_do_not_make_the_other() -> None:
    with pytest.raises(TokenMalformed):
        keyring().revocation(CLAIMS)
    with pytest.raises(TokenMalformed):
        keyring().seal(REVOCATION, TOKEN)


@pytest.mark.parametrize(
    "secret",
    ["", "x" * MAX_MESSAGE_BYTES, "x\udc80", "x\n", "\nx", " x", "x\t", "\u00a0x", "x\ny", "x\ry"],
    ids=lambda secret: ascii(secret[:5]),
)
def test_a_secret_that_could_not_be_opened_or_sent_is_not_sealed(secret: str) -> None:
    with pytest.raises(TokenMalformed):
        keyring().seal(CLAIMS, secret)


def test_public_halves_verify_but_neither_seal_nor_revoke_nor_open() -> None:
    public = keyring().public()

    verify(token(), public.trusted())
    with pytest.raises(NoIssuerKey):
        public.seal(CLAIMS, TOKEN)
    with pytest.raises(NoIssuerKey):
        public.revocation(REVOCATION)
    with pytest.raises(NoReaderKey, match=token().readers[0]):
        opened(public, token())


def test_an_empty_keyring_trusts_nobody() -> None:
    assert Keyring().trusted() == {}
    with pytest.raises(NoIssuerKey):
        Keyring().seal(CLAIMS, TOKEN)
    with pytest.raises(TokenForged):
        opened(Keyring(), token())


def test_without_a_reader_there_is_nobody_to_seal_for() -> None:
    with pytest.raises(NoReaderKey):
        keyring_of(halves()[0]).seal(CLAIMS, TOKEN)


@pytest.mark.parametrize("kind", [token, revocation])
def test_the_key_of_another_issuer_does_not_verify(kind: Callable[[], Message]) -> None:
    stranger = next(iter(trusted("stranger").values()))
    for issuers in (trusted("stranger"), {issuer(): stranger}, dict[str, Issuer]()):
        with pytest.raises(TokenForged):
            verify(kind(), issuers)


@pytest.mark.parametrize("key", ["", "A", "AAAA", "A" * 43, "+" * 43, "é" * 43, "A" * 1000])
def test_a_trusted_key_that_is_none_verifies_nothing(key: str) -> None:
    # The state of a node comes in a header that anybody may have written.
    with pytest.raises(TokenForged):
        verify(token(), {issuer(): Issuer(key)})


def test_an_expired_token_is_refused_from_the_second_it_expires() -> None:
    message = parse(keyring().seal(replace(CLAIMS, expires_at=SECONDS), TOKEN))

    assert opened(keyring(), message, now=SECONDS - 0.001) == TOKEN
    for now in (SECONDS, SECONDS + 1):
        with pytest.raises(TokenExpired):
            opened(keyring(), message, now=now)


def test_a_token_signed_for_workflow_types_opens_for_them_and_for_clients() -> None:
    message = parse(keyring().seal(replace(CLAIMS, types=("Sync", "Export")), TOKEN))

    for workflow_type in ("Sync", "Export", None):
        assert opened(keyring(), message, workflow_type=workflow_type) == TOKEN
    for workflow_type in ("sync", "Syn", ""):
        with pytest.raises(WrongWorkflowType):
            opened(keyring(), message, workflow_type=workflow_type)


def sealed_bytes(secret: bytes) -> Message:
    """A token with any bytes as its secret, which `Keyring.seal` would not seal."""
    jwe = encrypt(secret, CLAIMS.encode(), [Key.from_jwk(halves()[1])])
    return parse(signed(header_of(), jwe.encode()))


@pytest.mark.parametrize("secret", [b"", b"\xff\xfe", b"tok\x80"])
def test_a_secret_that_is_empty_or_no_text_is_refused(secret: bytes) -> None:
    with pytest.raises(TokenMalformed):
        opened(keyring(), sealed_bytes(secret))


# --- JWK Sets --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", '{"keys": null}', '{"keys": {}}', '{"keys": [null]}'),
        *('{"keys": [[]]}', '{"keys": [{}]}', '{"keys": []} x', "[" * 100_000),
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_a_text_that_is_no_jwk_set_is_refused(text: str) -> None:
    with pytest.raises(KeyringError):
        Keyring.from_json(text)


KEYS: dict[str, Callable[[Json], Json]] = {
    "another type": lambda key: {**key, "kty": "EC"},
    "no type": lambda key: without(key, "kty"),
    "another curve": lambda key: {**key, "crv": "Ed448"},
    "no curve": lambda key: without(key, "crv"),
    "a curve that is a list": lambda key: {**key, "crv": ["Ed25519"]},
    "the other curve": lambda key: {**key, "crv": "X25519"},
    "no public half": lambda key: without(key, "x"),
    "a public half that is null": lambda key: {**key, "x": None},
    "a short public half": lambda key: {**public_half(key), "x": "AAAA"},
    "a padded public half": lambda key: {**public_half(key), "x": key["x"] + "="},
    "a public half of other letters": lambda key: {**public_half(key), "x": "é" * 43},
    "a private half that is null": lambda key: {**key, "d": None},
    "a short private half": lambda key: {**key, "d": "AAAA"},
    "a private half that is a number": lambda key: {**key, "d": 1},
    "anothers private half": lambda key: {**without(key, "kid"), "d": halves("new")[0]["d"]},
    "a kid that is a name": lambda key: {**key, "kid": "issuer-1"},
    "anothers kid": lambda key: {**key, "kid": issuer("new")},
    "a kid that is a number": lambda key: {**key, "kid": 1},
    "settings that are a list": lambda key: {**key, "stateful": []},
    "settings that are null": lambda key: {**key, "stateful": None},
    "an unknown setting": lambda key: marked(key, revokd=True),
    "an audience of an issuer": lambda key: marked(key, audience="x"),
    "revoked that is a string": lambda key: marked(key, revoked="yes"),
    "revoked that is null": lambda key: marked(key, revoked=None),
    "retired that is a number": lambda key: marked(key, retired=1),
    "limits of a reader": lambda _: marked(halves()[1], names=["crm"]),
    "an audience that is a number": lambda _: marked(halves()[1], audience=1),
}


@pytest.mark.parametrize("change", KEYS.values(), ids=KEYS)
def test_a_malformed_key_is_refused(change: Callable[[Json], Json]) -> None:
    with pytest.raises(KeyringError):
        keyring_of(change(halves()[0]))


SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]
"""The points of order 1, 2, 4 and 8, each but for the sign of x."""

NOT_CANONICAL = [(2**255 - 19 + y).to_bytes(32, "little").hex() for y in range(19)]
NO_POINT = [y.to_bytes(32, "little").hex() for y in (2, 7, 8, 11)]
SHORT_OR_LONG = ["", "58" + "66" * 30, "58" + "66" * 32]


@pytest.mark.parametrize("sign", [0x00, 0x80])
@pytest.mark.parametrize("encoded", SMALL_ORDER + NOT_CANONICAL + NO_POINT + SHORT_OR_LONG)
def test_a_public_key_under_which_a_signature_proves_nothing_is_no_issuer(
    encoded: str, sign: int
) -> None:
    point = bytearray.fromhex(encoded)
    point[31:32] = bytes(byte | sign for byte in point[31:32])
    x = encode_base64url(bytes(point))

    with pytest.raises(KeyringError):
        keyring_of({"kty": "OKP", "crv": "Ed25519", "x": x})
    for stated in (x, {"x": x}, {"x": x, "names": ["crm"]}):
        with pytest.raises(ValueError, match=r"small order|base64url"):
            Issuer.from_json(stated)


def test_the_base_point_is_a_key_as_any_other() -> None:
    x = encode_base64url(bytes.fromhex("58" + "66" * 31))
    (issuer,) = keyring_of({"kty": "OKP", "crv": "Ed25519", "x": x}).trusted().values()
    assert Issuer.from_json(x) == issuer


def test_a_key_may_come_without_a_kid_and_with_members_of_others() -> None:
    key, _ = halves()
    assert keyring_of({**without(key, "kid"), "nbf": 1, "alg": "EdDSA"}).keys()[0].kid == issuer()


def test_a_key_named_twice_is_refused() -> None:
    key, reader = halves()
    with pytest.raises(KeyringError, match="twice"):
        keyring_of(key, reader, public_half(key))


def test_a_member_named_twice_cannot_hide_a_revocation() -> None:
    key, _ = halves()
    hidden = compact(marked(key, revoked=True)).decode()[:-1] + ',"stateful":{}}'
    with pytest.raises(KeyringError):
        Keyring.from_json(f'{{"keys":[{hidden}]}}')


# --- nothing leaks ---------------------------------------------------------------


def secrets_of(keys: Keyring) -> list[str]:
    return [str(key["d"]) for key in jwks(keys)]


def test_no_private_half_shows_where_keys_are_printed_or_given_to_others() -> None:
    keys = keyring()
    shown = [repr(keys), str(keys), f"{keys}", repr(vars(keys)), repr(keys.keys())]
    assert all(key.kid in shown[0] for key in keys.keys())
    shown += [keys.public().to_json(), str(keys.trusted())]
    for secret in secrets_of(keys):
        assert not any(secret in text for text in shown)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_keyring_is_not_pickled(protocol: int) -> None:
    for keys in (keyring(), keyring().public(), {"keys": [keyring()]}):
        with pytest.raises(TypeError):
            pickle.dumps(keys, protocol)


def said_by(error: BaseException) -> str:
    """All that a traceback or a reporter that knows nothing of it would print."""
    said = ""
    seen: BaseException | None = error
    while seen is not None:
        said += f"{seen} {seen!r} {seen.args!r} {vars(seen)!r}\n"
        seen = seen.__cause__ or seen.__context__
    return said


def refusals() -> dict[str, Callable[[], Any]]:
    expired = parse(keyring().seal(replace(CLAIMS, expires_at=1), TOKEN))
    typed = parse(keyring().seal(replace(CLAIMS, types=("Export",)), TOKEN))
    revoked = keyring_of(marked(halves()[0], revoked=True), halves()[1])
    lifted = encrypt(TOKEN.encode(), b"other claims", [Key.from_jwk(halves()[1])]).replace(
        encode_base64url(b"other claims"), encode_base64url(CLAIMS.encode())
    )
    return {
        "forged": lambda: opened(keyring("stranger"), token()),
        "no reader": lambda: opened(keyring().public(), token()),
        "revoked": lambda: opened(revoked, token()),
        "expired": lambda: opened(keyring(), expired),
        "namespace": lambda: opened(keyring(), token(), namespace="production"),
        "type": lambda: opened(keyring(), typed),
        "damaged": lambda: opened(keyring(), parse(signed(header_of(), lifted.encode()))),
        "not text": lambda: opened(keyring(), sealed_bytes(TOKEN.encode() + b"\xff")),
        "no issuer": lambda: keyring().public().seal(CLAIMS, TOKEN),
        "no readers": lambda: keyring_of(halves()[0]).seal(CLAIMS, TOKEN),
        "too large": lambda: keyring().seal(CLAIMS, TOKEN * 2000),
        "white space": lambda: keyring().seal(CLAIMS, f"{TOKEN}\n"),
        "not Unicode": lambda: keyring().seal(CLAIMS, TOKEN + "\udc80"),
        "bad claims": lambda: keyring().seal(replace(CLAIMS, version=0), TOKEN),
    }


@pytest.mark.parametrize("refusal", refusals().values(), ids=refusals())
def test_no_error_holds_the_token(refusal: Callable[[], Any]) -> None:
    with pytest.raises(StatefulError) as caught:
        refusal()
    assert TOKEN not in said_by(caught.value)


BROKEN_SETS: dict[str, Callable[[bytes], bytes]] = {
    "no JSON": lambda text: text + b"x",
    "no UTF-8": lambda text: text + b"\xff",
    "a malformed key": lambda text: text[:-2] + b',{"kty":"OKP","crv":"X25519","x":"A"}]}',
    "a key twice": lambda text: text[:-2] + b"," + compact(halves()[0]) + b"]}",
    "halves of two keys": lambda text: text.replace(
        halves()[0]["x"].encode(), halves("new")[0]["x"].encode()
    ),
}


@pytest.mark.parametrize("broken", BROKEN_SETS.values(), ids=BROKEN_SETS)
def test_no_error_holds_a_private_key(tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "keyring.json"
    path.write_bytes(broken(compact({"keys": jwks(keyring())})))
    path.chmod(0o600)
    with pytest.raises(KeyringError) as caught:
        Keyring.load(path)
    for secret in secrets_of(keyring()):
        assert secret not in said_by(caught.value)


# --- errors name what they are about -----------------------------------------------------------


def test_an_error_about_a_missing_key_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    keyring().public().save(path)
    public = Keyring.load(path)
    with pytest.raises(NoIssuerKey, match=re.escape(f"the keyring {path} has no issuer's private")):
        public.seal(CLAIMS, TOKEN)
    sealed = parse(keyring().seal(CLAIMS, TOKEN))
    with pytest.raises(NoReaderKey, match=re.escape(f"the keyring {path} has the private key of")):
        public.open(sealed, now=0, namespace=CLAIMS.namespace, workflow_type=None)


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_a_token_that_is_too_large_is_told_how_large_it_may_be(readers: int) -> None:
    ring = keyring()
    for _ in range(readers - 1):
        ring = ring.add_reader()
    with pytest.raises(TokenMalformed, match=f"20,000 bytes.*for {readers} readers") as raised:
        ring.seal(CLAIMS, "x" * 20_000)
    largest = int(str(raised.value).rsplit(" at most", 1)[0].rsplit(" ", 1)[1].replace(",", ""))
    assert len(ring.seal(CLAIMS, "x" * largest)) > MAX_MESSAGE_BYTES - 400
    with pytest.raises(TokenMalformed, match="at most"):
        ring.seal(CLAIMS, "x" * (largest + 8))
