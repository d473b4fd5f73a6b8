"""Events in Redis, for many hosts.

Keys, all in one hash slot: `events` a stream of id offset-0, `last` the highest offset, `ids` event_id -> offset,
`of:SHOPPER` the newest events by time, `sessions` session_id -> user_id, `firsts` the same as it was said first: whose
the events of before became; `barred` mark -> the moment up to which nothing of it is taken. What takes events out is
in redis_removal.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rayrec.store.base import EVERYBODY, HISTORY, REFUSED, Event, Numbered, Traces, told
from rayrec.store.redis_client import PREFIX, DurableRedis
from rayrec.store.redis_removal import Removal

_WHOSE = """
local function whose(user, session)
  if user ~= '' then return 'u:' .. user end
  if session == '' then return '' end
  local known = redis.call('HGET', KEYS[3], session)
  if known then return 'u:' .. known end
  return 's:' .. session
end
"""
# a script is one step for every other client. ARGV: history, everybody's mark, then event_id, user, session, ts_us,
# body and mark of each event
_APPEND = (
    _WHOSE
    + """
local last = tonumber(redis.call('GET', KEYS[5]) or '0')
local out, grown = {}, {}
local bars = redis.call('EXISTS', KEYS[7]) == 1
local function barred(mark) return tonumber(redis.call('HGET', KEYS[7], mark) or '-1') end
local everybody = bars and barred(ARGV[2])
for i = 3, #ARGV, 6 do
  local offset = last + 1
  local ts, mark = tonumber(ARGV[i + 3]), ARGV[i + 5]
  if bars and mark ~= '' and (ts <= everybody or ts <= barred(mark)) then
    out[#out + 1] = -1
  elseif redis.call('HSETNX', KEYS[2], ARGV[i], offset) == 0 then
    out[#out + 1] = 0
  else
    last = offset
    local shopper = whose(ARGV[i + 1], ARGV[i + 2])
    redis.call('XADD', KEYS[1], offset .. '-0', 's', shopper, 'b', ARGV[i + 4])
    if shopper ~= '' then
      local mine = KEYS[4] .. shopper
      grown[mine] = redis.call('ZADD', mine, ARGV[i + 3], string.format('%016d', offset) .. ARGV[i + 4])
    end
    out[#out + 1] = offset
  end
end
redis.call('SET', KEYS[5], last)
for mine, _ in pairs(grown) do redis.call('ZREMRANGEBYRANK', mine, 0, -tonumber(ARGV[1]) - 1) end
return out
"""
)
_IDENTIFY = """
local mine, theirs = KEYS[4] .. 's:' .. ARGV[2], KEYS[4] .. 'u:' .. ARGV[3]
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HSETNX', KEYS[6], ARGV[2], ARGV[3])
local moved = redis.call('ZCARD', mine)
if moved > 0 then
  redis.call('ZUNIONSTORE', theirs, 2, theirs, mine)
  redis.call('ZREMRANGEBYRANK', theirs, 0, -tonumber(ARGV[1]) - 1)
  redis.call('DEL', mine)
end
return moved
"""
_HISTORY = (
    _WHOSE
    + """
local out, seen = {}, {}
for _, shopper in ipairs({whose(ARGV[2], ''), whose('', ARGV[3])}) do
  if shopper ~= '' and not seen[shopper] then
    seen[shopper] = true
    local found = redis.call('ZRANGE', KEYS[4] .. shopper, -tonumber(ARGV[1]), -1, 'WITHSCORES')
    for _, value in ipairs(found) do out[#out + 1] = value end
  end
end
return out
"""
)
_OFFSET_DIGITS = 16
_UNASKED, _NOBODY = "", "nobody"  # in place of a mark: nothing is refused; only what everybody is refused


class RedisStore:
    """As EventStore says."""

    def __init__(self, url: str):
        self._redis = DurableRedis(url)
        self._keys = [PREFIX + name for name in ("events", "ids", "sessions", "of:", "last", "firsts", "barred")]
        client = self._redis.client
        self._append, self._identify, self._history = (
            client.register_script(text) for text in (_APPEND, _IDENTIFY, _HISTORY)
        )
        self._removal = Removal(client, PREFIX)

    def append(self, events: Sequence[Event], marks: Sequence[str | None] = ()) -> list[int | None]:
        arguments: list[Any] = [HISTORY, EVERYBODY]
        for event, mark in zip(events, marks or [_UNASKED] * len(events), strict=True):
            about = (event.get("user_id") or "", event.get("session_id") or "")
            whose = _NOBODY if mark is None else mark
            arguments += [event["event_id"], *about, event["ts_us"], orjson.dumps(event), whose]
        offsets = self._redis.call(lambda: self._append(keys=self._keys, args=arguments))
        return [REFUSED if offset < 0 else offset or None for offset in offsets]

    def history(self, user_id: str | None, session_id: str | None, limit: int = HISTORY) -> list[Numbered]:
        asked = [limit, user_id or "", session_id or ""]
        found = self._redis.call(lambda: self._history(keys=self._keys, args=asked))
        rows = sorted((int(float(ts)), member) for member, ts in zip(found[::2], found[1::2], strict=True))
        return [(int(m[:_OFFSET_DIGITS]), orjson.loads(m[_OFFSET_DIGITS:])) for _, m in rows[-limit:]]

    def identify(self, session_id: str, user_id: str) -> int:
        return self._redis.call(lambda: self._identify(keys=self._keys, args=[HISTORY, session_id, user_id]))

    def read(self, after: int, limit: int) -> list[Numbered]:
        entries = self._redis.call(lambda: self._redis.client.xrange(self._keys[0], min=f"{after + 1}-0", count=limit))
        whose = [values[b"s"].decode() for _, values in entries]
        sessions = sorted({name[2:] for name in whose if name.startswith("s:")})
        users = self._redis.call(lambda: self._redis.client.hmget(self._keys[5], sessions)) if sessions else []
        user_of = {f"s:{s}": f"u:{user.decode()}" for s, user in zip(sessions, users, strict=True) if user is not None}
        return [
            (int(entry.split(b"-")[0]), told(orjson.loads(values[b"b"]), user_of.get(name, name)))
            for (entry, values), name in zip(entries, whose, strict=True)
        ]

    def end(self) -> int:
        return int(self._redis.call(lambda: self._redis.client.get(self._keys[4])) or 0)

    # -- forgetting -------------------------------------------------------------------------------

    def traces(self, user_id: str) -> Traces:
        return self._redis.call(lambda: self._removal.traces(user_id))

    def bar(self, until_us: Mapping[str, int]) -> None:
        if until_us:
            self._redis.call(lambda: self._removal.bar(until_us))

    def barred(self, marks: Sequence[str]) -> int:
        found: list[bytes | None] = self._redis.call(
            lambda: self._redis.client.hmget(self._keys[6], [EVERYBODY, *marks])
        )
        return max(-1 if until_us is None else int(until_us) for until_us in found)

    def remove(self, shoppers: Sequence[str] | None, until_us: int) -> dict[str, int]:
        return self._redis.call(lambda: self._removal.remove(shoppers, until_us))

    def close(self) -> None:
        self._redis.client.close()
