"""Who may ask: API keys by scope, and the page's own sessions.

A key is 256 random bits, shown once and kept as its SHA-256 in the workspace (`keys/<id>.json`), which every
replica reads. Being random, it needs no slow hash: there is no dictionary to try. The page carries no key; it
has a same-site cookie that is signed with a secret of the workspace and lets it read.
"""

import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass

from rayrec.errors import NotFound, SchemaError
from rayrec.workspace import Workspace

SCOPES = ("read", "events", "catalog", "admin")
PREFIX = "rr_"
COOKIE = "rayrec_session"
SESSION_S = 86_400
_SECRET = "session.secret"


@dataclass(frozen=True)
class Key:
    """What is kept of a key. scope: one of SCOPES; `admin` may do what all others may."""

    id: str
    scope: str
    sha256: str
    label: str
    created_us: int


class Keys:
    """The keys of a workspace, as last read. `refresh` reads what others created or revoked."""

    def __init__(self, ws: Workspace):
        self._ws = ws
        self._keys: dict[str, Key] = {}
        self._secret = b""
        self.refresh()

    def create(self, scope: str, label: str = "") -> tuple[Key, str]:
        """(what is kept, the key itself, which nobody can show again). Raises SchemaError."""
        if scope not in SCOPES:
            raise SchemaError(f"scope {scope!r}: expected one of {', '.join(SCOPES)}")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), scope, _digest(secret), label, time.time_ns() // 1000)
        self._ws.write_bytes(json.dumps(asdict(key)).encode(), "keys", f"{key.id}.json")
        self._keys[key.id] = key
        return key, secret

    def list(self) -> list[Key]:
        """Oldest first."""
        return sorted(self._keys.values(), key=lambda key: (key.created_us, key.id))

    def revoke(self, key_id: str) -> None:
        """Raises NotFound."""
        if key_id not in self._keys:
            raise NotFound(f"no key {key_id!r}; 'rayrec keys list' shows them")
        self._ws.fs.delete_file(self._ws.path("keys", f"{key_id}.json"))
        del self._keys[key_id]

    def refresh(self) -> None:
        names = [name for name in self._ws.names("keys") if name.endswith(".json")]
        keys = {}
        for name in names:
            known = self._keys.get(name.removesuffix(".json"))
            try:
                key = known or Key(**json.loads(self._ws.read_bytes("keys", name)))
            except (NotFound, ValueError, TypeError):  # revoked meanwhile, or not a file of ours
                continue
            keys[key.id] = key
        self._keys = keys

    def scopes(self, secret: str) -> frozenset[str]:
        """What a key may do; nothing if it is none of ours. Takes as long whichever key it is like."""
        digest = _digest(secret)
        found = [key.scope for key in self._keys.values() if hmac.compare_digest(key.sha256, digest)]
        if not found:
            return frozenset()
        return frozenset(SCOPES if "admin" in found else found)

    # -- sessions of the page ---------------------------------------------------------------------

    def new_session(self) -> str:
        """The value of a cookie that lets a page read for a day."""
        payload = f"{int(time.time()) + SESSION_S}.{secrets.token_urlsafe(12)}"
        return f"{payload}.{self._sign(payload)}"

    def is_session(self, value: str) -> bool:
        payload, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self._sign(payload).encode(), signature.encode()):
            return False
        return time.time() < int(payload.partition(".")[0])

    def _sign(self, payload: str) -> str:
        return hmac.new(self._session_secret(), payload.encode(), hashlib.sha256).hexdigest()

    def _session_secret(self) -> bytes:
        """Made by whoever needs it first; the same for all replicas of a workspace."""
        if not self._secret:
            if not self._ws.exists("keys", _SECRET):
                self._ws.write_once(secrets.token_bytes(32), "keys", _SECRET)
            self._secret = self._ws.read_bytes("keys", _SECRET)
        return self._secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
