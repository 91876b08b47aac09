"""Keys: who may seal, who may open, and what a keyring file must look like."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from stateful_workflow.errors import (
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    StatefulError,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    TokenRevoked,
    WrongNamespace,
    WrongWorkflowType,
)
from stateful_workflow.sealed.keyring import Keyring, self_check
from stateful_workflow.sealed.keyring_file import KEYRING_VARIABLE
from stateful_workflow.sealed.keys import Issuer, verify
from stateful_workflow.sealed.message import (
    MAX_MESSAGE_BYTES,
    MAX_RECIPIENTS,
    Message,
    decode_base64url,
    encode_base64url,
    parse,
)
from stateful_workflow.text.private_file import GROUP_READ_VARIABLE, openness
from tests.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    TOKEN,
    Json,
    claims_of,
    compact,
    header_of,
    issuer,
    jwe_of,
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


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYRING_VARIABLE, raising=False)
    monkeypatch.delenv(GROUP_READ_VARIABLE, raising=False)


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
    first, second = jwks(keyring(owner))
    return (first, second) if first["crv"] == "Ed25519" else (second, first)


def public_half(key: Json) -> Json:
    return {name: value for name, value in key.items() if name != "d"}


# --- sealing and opening ---------------------------------------------------------


def test_a_new_keyring_has_one_issuer_and_one_reader_with_their_private_halves() -> None:
    keys = Keyring.generate().keys()

    assert sorted(key.kind for key in keys) == ["issuer", "reader"]
    assert all(key.private and not key.retired and not key.revoked for key in keys)
    assert {key.kid for key in keys}.isdisjoint(key.kid for key in Keyring.generate().keys())


def test_a_key_id_is_the_rfc_7638_thumbprint() -> None:
    # The key and its thumbprint of RFC 8037, appendix A.3.
    keys = keyring_of(
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    )
    assert keys.keys()[0].kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_what_is_sealed_opens() -> None:
    message = parse(keyring().seal(CLAIMS, TOKEN))

    verify(message, keyring().trusted())
    assert opened(keyring(), message) == TOKEN
    assert opened(keyring(), message, workflow_type=None) == TOKEN


@pytest.mark.parametrize("secret", ["x", "ä€😀", "a b\nc", "\x00", "x" * 8000])
def test_any_text_may_be_the_secret(secret: str) -> None:
    assert opened(keyring(), parse(keyring().seal(CLAIMS, secret))) == secret


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


def test_the_issuer_added_last_seals() -> None:
    old, reader = halves()
    new, _ = halves("new")
    assert parse(keyring_of(old, reader, new).seal(CLAIMS, TOKEN)).issuer == issuer("new")


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
    ["", "x" * MAX_MESSAGE_BYTES, "\udc80"],
    ids=["empty", "too large for a message", "not valid Unicode"],
)
def test_a_secret_that_could_not_be_opened_or_sent_is_not_sealed(secret: str) -> None:
    with pytest.raises(TokenMalformed):
        keyring().seal(CLAIMS, secret)


def test_claims_outside_the_wire_format_are_not_signed() -> None:
    with pytest.raises(TokenMalformed):
        keyring().seal(replace(CLAIMS, version=0), TOKEN)
    with pytest.raises(TokenMalformed):
        keyring().revocation(replace(REVOCATION, authority=""))


# --- who may not -----------------------------------------------------------------


def test_public_halves_verify_but_neither_seal_nor_revoke_nor_open() -> None:
    public = keyring().public()

    verify(token(), public.trusted())
    with pytest.raises(NoIssuerKey):
        public.seal(CLAIMS, TOKEN)
    with pytest.raises(NoIssuerKey):
        public.revocation(REVOCATION)
    with pytest.raises(NoReaderKey):
        opened(public, token())


def test_the_public_halves_are_the_same_keys() -> None:
    public = keyring().public()

    assert [key.kid for key in public.keys()] == [key.kid for key in keyring().keys()]
    assert not any(key.private for key in public.keys())
    assert public.trusted() == keyring().trusted()
    assert public.to_json() == public.public().to_json()


def test_an_empty_keyring_trusts_nobody() -> None:
    assert Keyring().trusted() == {}
    with pytest.raises(NoIssuerKey):
        Keyring().seal(CLAIMS, TOKEN)
    with pytest.raises(TokenForged):
        opened(Keyring(), token())


def test_without_a_reader_there_is_nobody_to_seal_for() -> None:
    with pytest.raises(NoReaderKey):
        keyring_of(halves()[0]).seal(CLAIMS, TOKEN)


def test_a_reader_the_token_was_not_sealed_for_does_not_open_it() -> None:
    other = keyring_of(public_half(halves()[0]), halves("stranger")[1])
    with pytest.raises(NoReaderKey, match=token().readers[0]):
        opened(other, token())


@pytest.mark.parametrize("kind", [token, revocation])
def test_the_key_of_another_issuer_does_not_verify(kind: Callable[[], Message]) -> None:
    stranger = next(iter(trusted("stranger").values()))
    with pytest.raises(TokenForged):
        verify(kind(), trusted("stranger"))
    with pytest.raises(TokenForged):
        verify(kind(), {issuer(): stranger})
    with pytest.raises(TokenForged):
        verify(kind(), {})


@pytest.mark.parametrize("key", ["", "A", "AAAA", "A" * 43, "+" * 43, "é" * 43, "A" * 1000])
def test_a_trusted_key_that_is_none_verifies_nothing(key: str) -> None:
    # The state of a node comes in a header that anybody may have written.
    with pytest.raises(TokenForged):
        verify(token(), {issuer(): Issuer(key)})


def test_a_signature_of_one_message_does_not_stand_under_another() -> None:
    first, second = token(NOW), token(NOW + 1)
    spliced = ".".join([*first.text.split(".")[:2], second.text.split(".")[2]])
    with pytest.raises(TokenForged):
        verify(parse(spliced), trusted("ours"))
    with pytest.raises(TokenForged):
        opened(keyring(), parse(spliced))


# --- opening checks everything again ---------------------------------------------


def test_an_expired_token_is_refused_from_the_second_it_expires() -> None:
    message = parse(keyring().seal(replace(CLAIMS, expires_at=SECONDS), TOKEN))

    assert opened(keyring(), message, now=SECONDS - 0.001) == TOKEN
    for now in (SECONDS, SECONDS + 1):
        with pytest.raises(TokenExpired):
            opened(keyring(), message, now=now)


def test_a_token_for_another_namespace_is_refused() -> None:
    for namespace in ("production", "", NAMESPACE.upper(), NAMESPACE + " "):
        with pytest.raises(WrongNamespace):
            opened(keyring(), token(), namespace=namespace)


def test_a_token_signed_for_workflow_types_opens_for_them_and_for_clients() -> None:
    message = parse(keyring().seal(replace(CLAIMS, types=("Sync", "Export")), TOKEN))

    for workflow_type in ("Sync", "Export", None):
        assert opened(keyring(), message, workflow_type=workflow_type) == TOKEN
    for workflow_type in ("Cleanup", "sync", "Syn", ""):
        with pytest.raises(WrongWorkflowType):
            opened(keyring(), message, workflow_type=workflow_type)


def test_a_token_signed_for_no_workflow_type_opens_for_none() -> None:
    message = parse(keyring().seal(replace(CLAIMS, types=()), TOKEN))
    with pytest.raises(WrongWorkflowType):
        opened(keyring(), message, workflow_type="Sync")


def test_a_revoked_issuers_token_is_refused_by_name_and_no_longer_trusted() -> None:
    key, reader = halves()
    revoked = keyring_of(marked(key, revoked=True), reader)

    assert revoked.trusted() == {}
    assert revoked.revoked() == (issuer(),)
    with pytest.raises(TokenRevoked, match=issuer()):
        opened(revoked, token())
    with pytest.raises(NoIssuerKey):
        revoked.seal(CLAIMS, TOKEN)


def test_a_retired_issuers_token_still_opens_but_it_seals_no_more() -> None:
    key, reader = halves()
    retired = keyring_of(marked(key, retired=True), reader)

    assert retired.trusted() == keyring().trusted()
    assert retired.revoked() == ()
    assert opened(retired, token()) == TOKEN
    with pytest.raises(NoIssuerKey):
        retired.seal(CLAIMS, TOKEN)
    with pytest.raises(NoIssuerKey):
        retired.revocation(REVOCATION)


def test_another_issuer_seals_where_the_last_one_is_retired_or_revoked() -> None:
    old, reader = halves()
    new, _ = halves("new")
    for mark in ({"retired": True}, {"revoked": True}):
        keys = keyring_of(old, marked(new, **mark), reader)
        assert parse(keys.seal(CLAIMS, TOKEN)).issuer == issuer()


@pytest.mark.parametrize("mark", ["retired", "revoked"])
def test_a_retired_reader_opens_what_it_has_and_gets_no_more(mark: str) -> None:
    key, reader = halves()
    _, other = halves("new")
    keys = keyring_of(key, marked(reader, **{mark: True}), other)

    assert opened(keys, token()) == TOKEN
    assert (
        parse(keys.seal(CLAIMS, TOKEN)).readers
        == parse(keyring_of(key, other).seal(CLAIMS, TOKEN)).readers
    )


def test_claims_lifted_onto_another_issuers_ciphertext_do_not_open() -> None:
    both = keyring_of(*halves(), public_half(halves("thief")[0]))
    wide = {**claims_of(), "origins": ["https://evil.example"]}
    lifted = {**jwe_of(token()), "aad": encode_base64url(compact(wide))}

    message = parse(signed(header_of(by="thief"), lifted, by="thief"))

    assert message.claims.origins == ("https://evil.example",)
    verify(message, both.trusted())  # a genuine signature of a trusted issuer
    with pytest.raises(TokenMalformed, match="does not decrypt"):
        opened(both, message)


def test_an_issuer_may_not_change_even_the_white_space_of_anothers_claims() -> None:
    lifted = {**jwe_of(token()), "aad": encode_base64url(json.dumps(claims_of()).encode())}
    message = parse(signed(header_of(), lifted))

    assert message.claims == CLAIMS
    with pytest.raises(TokenMalformed, match="does not decrypt"):
        opened(keyring(), message)


def flipped(text: str) -> str:
    data = bytearray(raw(text))
    data[0] ^= 1
    return encode_base64url(bytes(data))


def with_recipient(jwe: Json, encrypted_key: str | None = None, x: str | None = None) -> Json:
    """A JWE whose one recipient has another wrapped or another ephemeral key."""
    changed = copy.deepcopy(jwe)
    recipient: Json = changed["recipients"][0]
    if encrypted_key is not None:
        recipient["encrypted_key"] = encrypted_key
    if x is not None:
        recipient["header"]["epk"]["x"] = x
    return changed


DAMAGES: dict[str, Callable[[Json], Json]] = {
    "iv": lambda jwe: {**jwe, "iv": flipped(jwe["iv"])},
    "tag": lambda jwe: {**jwe, "tag": flipped(jwe["tag"])},
    "ciphertext": lambda jwe: {**jwe, "ciphertext": flipped(jwe["ciphertext"])},
    "no ciphertext": lambda jwe: {**jwe, "ciphertext": ""},
    "wrapped key": lambda jwe: with_recipient(
        jwe, encrypted_key=flipped(jwe["recipients"][0]["encrypted_key"])
    ),
    "ephemeral key": lambda jwe: with_recipient(
        jwe, x=flipped(jwe["recipients"][0]["header"]["epk"]["x"])
    ),
    "ephemeral key of low order": lambda jwe: with_recipient(jwe, x="A" * 43),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_jwe_under_a_genuine_signature_does_not_open(
    damage: Callable[[Json], Json],
) -> None:
    message = parse(signed(header_of(), damage(jwe_of(token()))))
    verify(message, trusted("ours"))
    with pytest.raises(TokenMalformed, match="does not decrypt"):
        opened(keyring(), message)


def sealed_elsewhere(secret: bytes) -> Message:
    """A token with any bytes as its secret, sealed after RFC 7516 and 7518 without our library."""
    _, reader = halves()
    ephemeral = X25519PrivateKey.generate()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(raw(str(reader["x"]))))
    algorithm = b"ECDH-ES+A256KW"
    info = struct.pack(">I", len(algorithm)) + algorithm + struct.pack(">III", 0, 0, 256)
    wrapping = ConcatKDFHash(SHA256(), 32, info).derive(shared)
    content, iv = os.urandom(32), os.urandom(12)
    protected, aad = encode_base64url(b'{"enc":"A256GCM"}'), encode_base64url(CLAIMS.encode())
    ciphertext = AESGCM(content).encrypt(iv, secret, f"{protected}.{aad}".encode())
    epk = encode_base64url(ephemeral.public_key().public_bytes_raw())
    recipient = {
        "header": {
            "alg": algorithm.decode(),
            "kid": reader["kid"],
            "epk": {"kty": "OKP", "crv": "X25519", "x": epk},
        },
        "encrypted_key": encode_base64url(aes_key_wrap(wrapping, content)),
    }
    jwe = {
        "protected": protected,
        "recipients": [recipient],
        "aad": aad,
        "iv": encode_base64url(iv),
        "ciphertext": encode_base64url(ciphertext[:-16]),
        "tag": encode_base64url(ciphertext[-16:]),
    }
    return parse(signed(header_of(), jwe))


def raw(text: str) -> bytes:
    return decode_base64url(text, "text")


def test_a_token_sealed_by_another_implementation_opens() -> None:
    assert opened(keyring(), sealed_elsewhere(TOKEN.encode())) == TOKEN


@pytest.mark.parametrize("secret", [b"", b"\xff\xfe", b"tok\x80"])
def test_a_secret_that_is_empty_or_no_text_is_refused(secret: bytes) -> None:
    with pytest.raises(TokenMalformed):
        opened(keyring(), sealed_elsewhere(secret))


def test_the_self_check_passes_on_a_sound_runtime() -> None:
    self_check()


# --- files -----------------------------------------------------------------------


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_keyring_is_saved_for_its_owner_only_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    previous = os.umask(0)
    try:
        keyring().save(path)
    finally:
        os.umask(previous)

    assert mode_of(path) == 0o600
    loaded = Keyring.load(path)
    assert loaded.path == path
    assert loaded.keys() == keyring().keys()
    assert loaded.to_json() == keyring().to_json()
    assert opened(loaded, token()) == TOKEN


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    path.write_text("precious")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere.json")

    for taken in (path, link):
        with pytest.raises(KeyringError, match="never overwritten"):
            keyring().save(taken)
    assert path.read_text() == "precious"
    assert not (tmp_path / "elsewhere.json").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "keyring.json"
    with pytest.raises(KeyringError, match=str(path)):
        keyring().save(path)


def test_retired_and_revoked_survive_the_file(tmp_path: Path) -> None:
    key, reader = halves()
    old, _ = halves("new")
    keys = keyring_of(marked(key, revoked=True), marked(old, retired=True), reader)
    keys.save(tmp_path / "keyring.json")

    assert Keyring.load(tmp_path / "keyring.json").keys() == keys.keys()
    assert keys.public().keys() == tuple(replace(key, private=False) for key in keys.keys())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601, 0o602, 0o777])
def test_a_private_key_that_others_may_touch_is_refused_with_mode_and_cure(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    path.chmod(mode)

    with pytest.raises(KeyringError) as caught:
        Keyring.load(path)

    assert f"{mode:04o}" in str(caught.value)
    assert f"chmod 600 {path}" in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_key_for_its_owner_only_loads(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    path.chmod(mode)
    assert Keyring.load(path).keys() == keyring().keys()


@pytest.mark.parametrize("kind", [0, 1], ids=["an issuer", "a reader"])
def test_one_private_half_is_enough_to_be_refused(tmp_path: Path, kind: int) -> None:
    keys = list(map(public_half, halves()))
    keys[kind] = halves()[kind]
    path = tmp_path / "keyring.json"
    keyring_of(*keys).save(path)
    path.chmod(0o644)
    with pytest.raises(KeyringError, match="0644"):
        Keyring.load(path)


def test_public_keys_may_be_read_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "public.json"
    keyring().public().save(path)
    path.chmod(0o644)
    assert Keyring.load(path).trusted() == keyring().trusted()


@pytest.mark.parametrize("mode", [0o646, 0o664, 0o602, 0o620, 0o666])
def test_public_keys_that_others_may_write_are_refused_with_mode_and_cure(
    tmp_path: Path, group_read: Callable[[Path], Keyring], mode: int
) -> None:
    path = tmp_path / "public.json"
    keyring().public().save(path)
    path.chmod(mode)

    for load in (Keyring.load, group_read):
        with pytest.raises(KeyringError) as caught:
            load(path)
        assert f"{mode:04o}" in str(caught.value)
        assert f"chmod go-w {path}" in str(caught.value)


def test_it_is_the_file_behind_a_link_that_counts(tmp_path: Path) -> None:
    path, link = tmp_path / "public.json", tmp_path / "link.json"
    keyring().public().save(path)
    link.symlink_to(path)
    assert Keyring.load(link).keys() == keyring().public().keys()
    path.chmod(0o666)
    with pytest.raises(KeyringError, match="0666"):
        Keyring.load(link)


@pytest.mark.parametrize("mode", [0o440, 0o640, 0o644])
def test_a_volume_as_kubernetes_mounts_it_loads(tmp_path: Path, mode: int) -> None:
    data = tmp_path / "..2027_01_15_08_00_00.1234567890"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)
    for name, keys in (("worker.json", keyring()), ("public.json", keyring().public())):
        keys.save(data / name)
        (data / name).chmod(mode)
        (tmp_path / name).symlink_to(f"..data/{name}")

    assert Keyring.load(tmp_path / "public.json").keys() == keyring().public().keys()
    if mode != 0o644:
        loaded = Keyring.load(tmp_path / "worker.json", allow_group_read=True)
        assert loaded.keys() == keyring().keys()


def owned(user: int, mode: int) -> os.stat_result:
    """What `os.fstat` says of a file of this user."""
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, user, 0, 0, 0, 0, 0))


STRANGER = 4711


@pytest.mark.parametrize("private", [True, False])
def test_a_file_of_root_or_of_the_processs_own_user_will_do_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = Path("keyring.json")

    for user in (0, 1000):
        assert openness(path, owned(user, 0o600), private=private) is None
    problem = openness(path, owned(STRANGER, 0o600), private=private)

    assert problem is not None
    assert f"belongs to user {STRANGER}" in problem
    assert "chown 1000 keyring.json" in problem


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("part", [keyring, lambda: keyring().public()], ids=["all", "public"])
def test_a_keyring_of_another_user_is_refused(tmp_path: Path, part: Callable[[], Keyring]) -> None:
    path = tmp_path / "keyring.json"
    part().save(path)
    os.chown(path, STRANGER, -1)
    with pytest.raises(KeyringError, match=f"belongs to user {STRANGER}.*chown 0 {path}"):
        Keyring.load(path)


@pytest.fixture(params=["argument", "environment"])
def group_read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], Keyring]:
    if request.param == "argument":
        return lambda path: Keyring.load(path, allow_group_read=True)
    monkeypatch.setenv(GROUP_READ_VARIABLE, "1")
    return Keyring.load


@pytest.mark.parametrize("mode", [0o640, 0o440])
def test_group_read_is_allowed_by_a_setting(
    tmp_path: Path, group_read: Callable[[Path], Keyring], mode: int
) -> None:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    path.chmod(mode)
    assert group_read(path).keys() == keyring().keys()


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o620, 0o650, 0o641, 0o642])
def test_group_read_allows_nothing_more(
    tmp_path: Path, group_read: Callable[[Path], Keyring], mode: int
) -> None:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    path.chmod(mode)
    with pytest.raises(KeyringError, match=f"{mode:04o}"):
        group_read(path)


@pytest.mark.parametrize("value", ["", "0", "true", "yes", " 1"])
def test_only_1_sets_group_read_and_the_argument_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    path.chmod(0o640)
    monkeypatch.setenv(GROUP_READ_VARIABLE, value)
    with pytest.raises(KeyringError):
        Keyring.load(path)
    monkeypatch.setenv(GROUP_READ_VARIABLE, "1")
    with pytest.raises(KeyringError):
        Keyring.load(path, allow_group_read=False)


def test_without_a_path_the_environment_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyringError, match=KEYRING_VARIABLE):
        Keyring.load()
    keyring().save(tmp_path / "named.json")
    keyring("new").save(tmp_path / "given.json")
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path / "named.json"))

    assert Keyring.load().keys() == keyring().keys()
    assert Keyring.load(tmp_path / "given.json").keys() == keyring("new").keys()


@pytest.mark.parametrize("content", [None, b"", b"not JSON", b"\xff", b'{"keys": 1}'])
def test_a_file_that_is_missing_or_malformed_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "keyring.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyringError, match=str(path)):
        Keyring.load(path)


def test_a_directory_is_no_keyring(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=str(tmp_path)):
        Keyring.load(tmp_path)


# --- JWK Sets --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '"keys"',
        '{"keys": null}',
        '{"keys": {}}',
        '{"keys": [null]}',
        '{"keys": [[]]}',
        '{"keys": [{}]}',
        '{"keys": []} x',
        "[" * 100_000,
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
    "an empty private half": lambda key: {**key, "d": ""},
    "a short private half": lambda key: {**key, "d": "AAAA"},
    "a private half that is a number": lambda key: {**key, "d": 1},
    "anothers private half": lambda key: {**key, "d": halves("new")[0]["d"]},
    "anothers private half and no kid": lambda key: {
        **without(key, "kid"),
        "d": halves("new")[0]["d"],
    },
    "a kid that is a name": lambda key: {**key, "kid": "issuer-1"},
    "anothers kid": lambda key: {**key, "kid": issuer("new")},
    "a kid that is a number": lambda key: {**key, "kid": 1},
    "settings that are a list": lambda key: {**key, "stateful": []},
    "settings that are null": lambda key: {**key, "stateful": None},
    "an unknown setting": lambda key: marked(key, revokd=True),
    "revoked that is a string": lambda key: marked(key, revoked="yes"),
    "revoked that is null": lambda key: marked(key, revoked=None),
    "retired that is a number": lambda key: marked(key, retired=1),
}


def without(key: Json, member: str) -> Json:
    return {name: value for name, value in key.items() if name != member}


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


def test_no_private_half_shows_in_repr_or_str() -> None:
    keys = keyring()
    shown = [repr(keys), str(keys), f"{keys}", repr(vars(keys)), repr(keys.keys())]
    assert all(key.kid in shown[0] for key in keys.keys())
    for secret in secrets_of(keys):
        assert not any(secret in text for text in shown)


def test_no_private_half_is_among_the_public_ones() -> None:
    for secret in secrets_of(keyring()):
        assert secret not in keyring().public().to_json()
        assert secret not in str(keyring().trusted())


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
    damaged = parse(signed(header_of(), DAMAGES["tag"](jwe_of(token()))))
    return {
        "forged": lambda: opened(keyring("stranger"), token()),
        "no reader": lambda: opened(keyring().public(), token()),
        "revoked": lambda: opened(revoked, token()),
        "expired": lambda: opened(keyring(), expired),
        "namespace": lambda: opened(keyring(), token(), namespace="production"),
        "type": lambda: opened(keyring(), typed),
        "damaged": lambda: opened(keyring(), damaged),
        "not text": lambda: opened(keyring(), sealed_elsewhere(TOKEN.encode() + b"\xff")),
        "no issuer": lambda: keyring().public().seal(CLAIMS, TOKEN),
        "no readers": lambda: keyring_of(halves()[0]).seal(CLAIMS, TOKEN),
        "too large": lambda: keyring().seal(CLAIMS, TOKEN * 2000),
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


@pytest.mark.parametrize("token", ["secret\n", "\nsecret", " secret", "secret\t", "\u00a0secret"])
def test_a_token_with_white_space_at_an_end_is_not_sealed(token: str) -> None:
    with pytest.raises(TokenMalformed) as refused:
        Keyring.generate().seal(CLAIMS, token)
    assert "secret" not in str(refused.value)
