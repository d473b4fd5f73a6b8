"""Changes of the catalog in Redis, beside the events.

Keys, all in one hash slot: `changes` a stream of id offset-0, `changed` the highest offset, `newest` items by the
offset of their newest change, `vectors` key -> vector, `vectors_at` the same keys by the offset that they came with.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from rayrec.schema import Change
from rayrec.store.base import Wanted
from rayrec.store.redis_client import PREFIX, DurableRedis

# ARGV: how many changes; item_id, unless_after ('' for any), ts_us, content, item of each; then key, vector of each
_CHANGE = """
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local out = {}
local many = tonumber(ARGV[1])
for i = 2, many * 5 + 1, 5 do
  local bound, newest = ARGV[i + 1], tonumber(redis.call('ZSCORE', KEYS[3], ARGV[i]) or '0')
  if bound ~= '' and newest > tonumber(bound) then
    out[#out + 1] = 0
  else
    last = last + 1
    redis.call('XADD', KEYS[1], last .. '-0', 'i', ARGV[i], 't', ARGV[i + 2], 'c', ARGV[i + 3], 'b', ARGV[i + 4])
    redis.call('ZADD', KEYS[3], last, ARGV[i])
    out[#out + 1] = last
  end
end
redis.call('SET', KEYS[2], last)
for i = many * 5 + 2, #ARGV, 2 do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[5], last, ARGV[i])
end
return out
"""
_CUT = """
local until_ = tonumber(ARGV[1])
local gone = redis.call('XTRIM', KEYS[1], 'MINID', string.format('%d-0', until_ + 1))
local old = redis.call('ZRANGE', KEYS[5], '-inf', until_, 'BYSCORE')
for _, key in ipairs(old) do redis.call('HDEL', KEYS[4], key) end
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', until_)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', until_)
return gone
"""


class RedisCatalogLog:
    """As CatalogLog says."""

    def __init__(self, url: str):
        self._redis = DurableRedis(url)
        self._keys = [PREFIX + name for name in ("changes", "changed", "newest", "vectors", "vectors_at")]
        self._change, self._cut = (self._redis.client.register_script(text) for text in (_CHANGE, _CUT))

    def change(self, wanted: Sequence[Wanted], vectors: Mapping[str, bytes]) -> list[int | None]:
        arguments: list[Any] = [len(wanted)]
        for each in wanted:
            bound = "" if each.unless_after is None else each.unless_after
            item = b"" if each.item is None else orjson.dumps(each.item)
            arguments += [each.item_id, bound, each.ts_us, each.content or "", item]
        for key, vector in vectors.items():
            arguments += [key, vector]
        offsets = self._redis.call(lambda: self._change(keys=self._keys, args=arguments))
        return [offset or None for offset in offsets]

    def changes(self, after: int, limit: int) -> list[Change]:
        entries = self._redis.call(lambda: self._redis.client.xrange(self._keys[0], min=f"{after + 1}-0", count=limit))
        return [
            Change(
                int(entry.split(b"-")[0]),
                values[b"i"].decode(),
                orjson.loads(values[b"b"]) if values[b"b"] else None,
                values[b"c"].decode() or None,
                int(values[b"t"]),
            )
            for entry, values in entries
        ]

    def vectors(self, keys: Iterable[str]) -> dict[str, bytes]:
        names = list(keys)
        if not names:
            return {}
        found = self._redis.call(lambda: self._redis.client.hmget(self._keys[3], names))
        return {name: vector for name, vector in zip(names, found, strict=True) if vector is not None}

    def newest(self) -> int:
        return int(self._redis.call(lambda: self._redis.client.get(self._keys[1])) or 0)

    def start_after(self, offset: int) -> None:
        self._redis.raise_to(self._keys[1], offset)

    def cut(self, until: int) -> int:
        return self._redis.call(lambda: self._cut(keys=self._keys, args=[until]))

    def close(self) -> None:
        self._redis.client.close()
