"""Keys and sessions: what is kept, who gets in, and what a replica learns of changes elsewhere."""

import json

import pytest

from rayrec.errors import NotFound, SchemaError
from rayrec.serving.auth import SESSION_S, Keys
from rayrec.workspace import Workspace


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path)


def test_a_key_is_kept_as_its_hash_only(ws):
    key, secret = Keys(ws).create("read", "mobile app")
    kept = "".join(ws.read_bytes("keys", name).decode() for name in ws.names("keys"))
    assert secret not in kept
    assert json.loads(kept)["sha256"] == key.sha256
    assert len(secret.removeprefix("rr_")) == 43, "256 bits, in base64"


def test_scopes_are_those_given_and_admin_has_all(ws):
    keys = Keys(ws)
    read, admin = keys.create("read")[1], keys.create("admin")[1]
    assert keys.scopes(read) == {"read"}
    assert keys.scopes(admin) == {"read", "events", "catalog", "admin"}
    for wrong in ("", "rr_", read[:-1], read + "x", read.upper()):
        assert keys.scopes(wrong) == frozenset()
    with pytest.raises(SchemaError, match="read, events"):
        keys.create("root")


def test_every_key_is_compared_whichever_matches(ws, monkeypatch):
    keys = Keys(ws)
    first = keys.create("read")[1]
    keys.create("read")
    compared = []
    compare = "rayrec.serving.auth.hmac.compare_digest"
    monkeypatch.setattr(compare, lambda a, b: compared.append(a) or a == b)
    keys.scopes(first)
    keys.scopes("rr_wrong")
    assert len(compared) == 4


def test_another_replica_learns_of_new_and_revoked_keys(ws):
    mine, theirs = Keys(ws), Keys(ws)
    key, secret = mine.create("read")
    assert not theirs.scopes(secret)
    theirs.refresh()
    assert theirs.scopes(secret)
    mine.revoke(key.id)
    assert not mine.scopes(secret)
    theirs.refresh()
    assert not theirs.scopes(secret)
    with pytest.raises(NotFound, match=key.id):
        mine.revoke(key.id)


def test_a_damaged_key_file_opens_nothing_and_stops_nothing(ws):
    _, secret = Keys(ws).create("read")
    ws.write_bytes(b"{", "keys", "half.json")
    ws.write_bytes(b'{"id": "x"}', "keys", "other.json")
    assert Keys(ws).scopes(secret) == {"read"}


def test_a_session_is_good_for_a_day_on_every_replica_and_for_nobody_else(ws, tmp_path_factory, monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr("rayrec.serving.auth.time.time", lambda: now)
    value = Keys(ws).new_session()
    assert Keys(ws).is_session(value)
    assert not Keys(Workspace.open(tmp_path_factory.mktemp("other"))).is_session(value)
    expires, nonce, signature = value.split(".")
    for forged in (f"{int(expires) + 1}.{nonce}.{signature}", f"{expires}.{nonce}.", "", "a.b.c", "é", value + "x"):
        assert not Keys(ws).is_session(forged)
    now += SESSION_S
    assert not Keys(ws).is_session(value)
