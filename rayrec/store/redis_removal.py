"""Taking events out of Redis, and out of its files.

A stream keeps its entries in packed lists of a hundred, in which XDEL only marks one as deleted: its bytes stay, and
are written into every later file. So the stream is copied without what is to go, some entries at a time while others
append, and takes the old one's place in the step that finds nothing left to copy. Then the append-only file is written
anew, which ends with the old ones being unlinked, and so is the dump if this Redis makes any.
"""

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import orjson
import redis

from rayrec.errors import SchemaError, Unavailable
from rayrec.store.base import Traces

T = TypeVar("T")
_AT_ONCE = 1_000  # entries of one step, some milliseconds in which nobody else is served
_LOCK_MS = 60_000  # after which a removal that was killed is no longer in the way
_FILES_S = 600.0
_NAMES = ("events", "ids", "sessions", "shopper:", "firsts", "barred", "unclean", "removing", "events.kept")
_BAR = """
for i = 1, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if tonumber(ARGV[i + 1]) > known then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
"""
# ARGV: from where, how many, whose. The last id seen, and the bodies of theirs
_FIND = """
local last, bodies = false, {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
  last = entry[1]
  if entry[2][2] == ARGV[3] then bodies[#bodies + 1] = entry[2][4] end
end
return {last, bodies}
"""
# of a shopper's list, leave what is after that
_AFTER = """
local function after(mine, until_us)
  local left = {}
  for _, one in ipairs(redis.call('LRANGE', mine, 0, -1)) do
    if tonumber(string.sub(one, 1, 16)) > until_us then left[#left + 1] = one end
  end
  redis.call('UNLINK', mine)
  if #left > 0 then redis.call('RPUSH', mine, unpack(left)) end
end
"""
# KEYS: as _NAMES. ARGV: token, lock_ms, from where, how many, until_us, everybody or not, shoppers.
# {the last id seen or false: it is done, how many were left out}
_COPY = (
    _AFTER
    + """
if redis.call('GET', KEYS[8]) ~= ARGV[1] then return redis.error_reply('TAKEN') end
redis.call('PEXPIRE', KEYS[8], ARGV[2])
local many, until_us, all = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local theirs = {}
for i = 7, #ARGV do theirs[ARGV[i]] = true end
local function is_theirs(name)
  if not theirs[name] or string.sub(name, 1, 2) ~= 's:' then return theirs[name] end
  local first = redis.call('HGET', KEYS[5], string.sub(name, 3))  -- it may have been another's before it was theirs
  return not first or theirs['u:' .. first]
end
if ARGV[3] == '-' then redis.call('UNLINK', KEYS[9]) end  -- of one that was killed
local found, removed = redis.call('XRANGE', KEYS[1], ARGV[3], '+', 'COUNT', many), 0
for _, entry in ipairs(found) do
  local event = (all or is_theirs(entry[2][2])) and cjson.decode(entry[2][4])
  if event and event.ts_us <= until_us then
    redis.call('HDEL', KEYS[2], event.event_id)
    removed = removed + 1
  else
    redis.call('XADD', KEYS[9], entry[1], unpack(entry[2]))
  end
end
if #found == many then return {found[#found][1], removed} end
redis.call('UNLINK', KEYS[1])
if redis.call('EXISTS', KEYS[9]) == 1 then redis.call('RENAME', KEYS[9], KEYS[1]) end
local sessions = 0
for name, _ in pairs(theirs) do
  after(KEYS[4] .. name, until_us)
  local session = string.sub(name, 1, 2) == 's:' and string.sub(name, 3)
  for _, key in ipairs(session and {KEYS[3], KEYS[5]} or {}) do
    local user = redis.call('HGET', key, session)
    if user and theirs['u:' .. user] then
      local gone = redis.call('HDEL', key, session)
      if key == KEYS[3] then sessions = sessions + gone end
    end
  end
end
return {false, removed, sessions}
"""
)
# KEYS: lists of shoppers. ARGV: until_us
_TRIM = (
    _AFTER
    + """
for _, mine in ipairs(KEYS) do after(mine, tonumber(ARGV[1])) end
"""
)


def _some(found: Iterable[T]) -> Iterator[list[T]]:
    one_by_one = iter(found)
    while some := list(itertools.islice(one_by_one, _AT_ONCE)):
        yield some


class Removal:
    """One at a time: who comes while another is under way is told so. Raises what `RedisStore._call` maps."""

    def __init__(self, client: Any, prefix: str):
        self._client = client
        self._keys = [prefix + name for name in _NAMES]
        self._add, self._find, self._copy, self._cut = map(client.register_script, (_BAR, _FIND, _COPY, _TRIM))

    def bar(self, until_us: Mapping[str, int]) -> None:
        flat = [value for pair in until_us.items() for value in pair]
        self._add(keys=[self._keys[5]], args=flat)

    def traces(self, user_id: str) -> Traces:
        """Reads the whole log, and all that is known of sessions: nothing leads to them faster."""
        user = user_id.encode()
        sessions = {
            session.decode()
            for key in (self._keys[2], self._keys[4])
            for session, whose in self._client.hscan_iter(key, count=_AT_ONCE)
            if whose == user
        }
        newest = self._client.sort(self._keys[3] + f"u:{user_id}", alpha=True, desc=True, start=0, num=1)
        newest_us, at = max([int(one[:16]) for one in newest], default=0), "-"
        while True:
            last, bodies = self._find(keys=[self._keys[0]], args=[at, _AT_ONCE, f"u:{user_id}"])
            for body in bodies:
                event = orjson.loads(body)
                newest_us = max(newest_us, event["ts_us"])
                sessions |= {event["session_id"]} if event.get("session_id") else set()
            if last is None:
                return Traces(sorted(sessions), newest_us)
            at = f"({last.decode()}"

    def remove(self, shoppers: Sequence[str] | None, until_us: int) -> dict[str, int]:
        with self._alone() as token:
            if shoppers is not None and not self._anything(shoppers):
                return {"events": 0, "sessions": 0}
            self._client.set(self._keys[6], 1)
            events, sessions = 0, 0
            at: str | None = "-"
            while at is not None:
                given = [token, _LOCK_MS, at, _AT_ONCE, until_us, int(shoppers is None), *(shoppers or ())]
                last, removed, *more = self._copy(keys=self._keys, args=given)
                events += removed
                sessions += sum(more)
                at = None if last is None else f"({last.decode()}"
            if shoppers is None:
                sessions += self._trim(token, until_us)
            self._rewrite_files()
            self._hold(token)
            self._client.delete(self._keys[6])
            return {"events": events, "sessions": sessions}

    def _anything(self, shoppers: Sequence[str]) -> bool:
        """Whether there is anything of them, or a removal before did not come to its end."""
        keys = [self._keys[6], *(self._keys[3] + one for one in shoppers)]
        sessions = [one[2:] for one in shoppers if one.startswith("s:")]
        known = self._client.hmget(self._keys[2], sessions) if sessions else []
        return bool(self._client.exists(*keys)) or any(known)

    def _trim(self, token: str, until_us: int) -> int:
        """Everybody's newest events, and the sessions of those of whom none is left; how many sessions."""
        for keys in _some(self._client.scan_iter(f"{self._keys[3]}*", count=_AT_ONCE)):
            self._hold(token)
            self._cut(keys=keys, args=[until_us])
        gone = 0
        for hashed in (self._keys[4], self._keys[2]):
            for pairs in _some(self._client.hscan_iter(hashed, count=_AT_ONCE)):
                self._hold(token)
                with self._client.pipeline(transaction=False) as together:
                    for _, user in pairs:
                        together.exists(self._keys[3].encode() + b"u:" + user)
                    there = together.execute()
                lost = [session for (session, _), known in zip(pairs, there, strict=True) if not known]
                found = self._client.hdel(hashed, *lost) if lost else 0
                gone += found if hashed == self._keys[2] else 0
        return gone

    def _hold(self, token: str) -> None:
        """Raises Unavailable if another removal began, because this one took too long between two steps."""
        if self._client.get(self._keys[7]) != token.encode():
            raise Unavailable("the removal took too long between two steps; do it again")
        self._client.pexpire(self._keys[7], _LOCK_MS)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[str]:
        token = secrets.token_hex(8)
        if not self._client.set(self._keys[7], token, nx=True, px=_LOCK_MS):
            raise Unavailable("another removal is under way; try again")
        try:
            yield token
        except redis.ResponseError as error:
            if "TAKEN" in str(error):
                raise Unavailable("the removal took too long between two steps; do it again") from error
            raise SchemaError(f"store: this Redis refuses what a removal needs: {error}") from error
        finally:
            with contextlib.suppress(redis.RedisError):
                if self._client.get(self._keys[7]) == token.encode():
                    self._client.delete(self._keys[7])

    # -- files --------------------------------------------------------------------------------------

    def _rewrite_files(self) -> None:
        deadline = time.monotonic() + _FILES_S
        self._written(deadline, "aof", self._client.bgrewriteaof)
        if any(self._client.config_get("save").values()):
            self._written(deadline, "rdb", self._client.bgsave)

    def _written(self, deadline: float, kind: str, begin: Callable[[], Any]) -> None:
        """One that is under way began before the removal, perhaps: it has to end first."""
        self._idle(deadline)
        begin()
        self._idle(deadline)
        status = {"aof": "aof_last_bgrewrite_status", "rdb": "rdb_last_bgsave_status"}[kind]
        if self._client.info("persistence")[status] != "ok":
            raise Unavailable(f"Redis could not write its files anew ({status}); see its log and do it again")

    def _idle(self, deadline: float) -> None:
        while True:
            told = self._client.info("persistence")
            busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
            if not any(told.get(name) for name in busy):
                return
            if time.monotonic() > deadline:
                raise Unavailable("Redis did not write its files anew in time; do it again")
            self._client.pexpire(self._keys[7], _LOCK_MS)
            time.sleep(0.05)
