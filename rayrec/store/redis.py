"""Events in Redis, for many hosts.

Keys, all in one hash slot: `events` a stream of id offset-0, `last` the highest offset, `ids` event_id -> offset,
`shopper:SHOPPER` a list of the shopper's newest events, each its ts_us and its offset in 16 digits, `sessions`
session_id -> user_id, `firsts` the same as it was said first: whose the events of before became; `barred` mark -> the
moment up to which nothing of it is taken. What takes events out is in redis_removal.py.
"""

from collections.abc import Mapping, Sequence

import orjson

from rayrec.store.base import EVERYBODY, HISTORY, REFUSED, Event, Numbered, Traces, shopper, told
from rayrec.store.redis_client import PREFIX, DurableRedis
from rayrec.store.redis_removal import Removal

_WHOSE = """
local function whose(shopper)
  if string.sub(shopper, 1, 2) ~= 's:' then return shopper end
  local known = redis.call('HGET', KEYS[3], string.sub(shopper, 3))
  return known and 'u:' .. known or shopper
end
"""
_CUT = """
local function cut(mine) redis.call('SORT', mine, 'ALPHA', 'DESC', 'LIMIT', 0, ARGV[1], 'STORE', mine) end
"""
# a script is one step for every other client. ARGV: history, everybody's mark, and lists of the events' ids, shoppers,
# ts_us, bodies and marks in one JSON, which costs both sides half of what as many arguments do. A shopper's list is in
# no order, so that adding to it costs next to nothing, and is cut back to the newest when it is twice as long as it
# needs to be
_APPEND = (
    _WHOSE
    + _CUT
    + """
local last = tonumber(redis.call('GET', KEYS[5]) or '0')
local ids, shoppers, times, bodies, marks = unpack(cjson.decode(ARGV[3]))
local out, new, taken = {}, {}, {}
local known = redis.call('HMGET', KEYS[2], unpack(ids))
local bars = redis.call('EXISTS', KEYS[7]) == 1
local function barred(mark) return tonumber(redis.call('HGET', KEYS[7], mark) or '-1') end
local everybody = bars and barred(ARGV[2])
for i, id in ipairs(ids) do
  local ts, mark = times[i], marks[i]
  if bars and mark ~= '' and tonumber(ts) <= math.max(everybody, barred(mark)) then
    out[i] = -1
  elseif known[i] or taken[id] then
    out[i] = 0
  else
    last = last + 1
    taken[id], out[i] = true, last
    new[#new + 1], new[#new + 2] = id, last
    local shopper = whose(shoppers[i])
    redis.call('XADD', KEYS[1], last .. '-0', 's', shopper, 'b', bodies[i])
    if shopper ~= '' then
      local mine = KEYS[4] .. shopper
      if redis.call('RPUSH', mine, ts .. string.format('%016d', last)) > 2 * ARGV[1] then cut(mine) end
    end
  end
end
if #new > 0 then
  redis.call('HSET', KEYS[2], unpack(new))
  redis.call('SET', KEYS[5], last)
end
return table.concat(out, ' ')
"""
)
_IDENTIFY = (
    _CUT
    + """
local mine, theirs = KEYS[4] .. 's:' .. ARGV[2], KEYS[4] .. 'u:' .. ARGV[3]
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HSETNX', KEYS[6], ARGV[2], ARGV[3])
local moved = redis.call('LRANGE', mine, 0, -1)
if #moved > 0 then
  redis.call('DEL', mine)
  if redis.call('RPUSH', theirs, unpack(moved)) > 2 * ARGV[1] then cut(theirs) end
end
return #moved
"""
)
_HISTORY = (
    _WHOSE
    + """
local out = {}
local user, session = ARGV[2], whose(ARGV[3])
if user ~= '' and session ~= ARGV[3] then session = '' end
for _, shopper in ipairs({user, session}) do
  for _, one in ipairs(redis.call('SORT', KEYS[4] .. shopper, 'ALPHA', 'DESC', 'LIMIT', 0, ARGV[1])) do
    local id = tonumber(string.sub(one, 17)) .. '-0'
    local event = redis.call('XRANGE', KEYS[1], id, id)[1]
    if event then out[#out + 1], out[#out + 2] = one, event[2][4] end
  end
end
return out
"""
)
_DIGITS = 16
_AT_ONCE = 1_000  # events of one step; Lua passes no more than 8,000 values on
_UNASKED, _NOBODY = "", "nobody"  # in place of a mark: nothing is refused; only what everybody is refused


class RedisStore:
    """As EventStore says."""

    def __init__(self, url: str):
        self._redis = DurableRedis(url)
        self._keys = [PREFIX + name for name in ("events", "ids", "sessions", "shopper:", "last", "firsts", "barred")]
        client = self._redis.client
        self._append, self._identify, self._history = (
            client.register_script(text) for text in (_APPEND, _IDENTIFY, _HISTORY)
        )
        self._removal = Removal(client, PREFIX)

    def append(self, events: Sequence[Event], marks: Sequence[str | None] = ()) -> list[int | None]:
        pairs = list(zip(events, marks or [_UNASKED] * len(events), strict=True))
        return [
            offset for at in range(0, len(pairs), _AT_ONCE) for offset in self._append_some(pairs[at : at + _AT_ONCE])
        ]

    def _append_some(self, pairs: Sequence[tuple[Event, str | None]]) -> list[int | None]:
        columns = (
            [event["event_id"] for event, _ in pairs],
            [shopper(event.get("user_id"), event.get("session_id")) or "" for event, _ in pairs],
            [f"{event['ts_us']:0{_DIGITS}d}" for event, _ in pairs],
            [orjson.dumps(event).decode() for event, _ in pairs],
            [_NOBODY if mark is None else mark for _, mark in pairs],
        )
        arguments = [HISTORY, EVERYBODY, orjson.dumps(columns)]
        offsets = self._redis.call(lambda: self._append(keys=self._keys, args=arguments)).split()
        return [REFUSED if offset < 0 else offset or None for offset in map(int, offsets)]

    def history(self, user_id: str | None, session_id: str | None, limit: int = HISTORY) -> list[Numbered]:
        asked = [limit, shopper(user_id, None) or "", shopper(None, session_id) or ""]
        found = self._redis.call(lambda: self._history(keys=self._keys, args=asked))
        rows = sorted(zip(found[::2], found[1::2], strict=True))[-limit:]
        return [(int(at[_DIGITS:]), orjson.loads(body)) for at, body in rows]

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

    def start_after(self, offset: int) -> None:
        self._redis.raise_to(self._keys[4], offset)

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
