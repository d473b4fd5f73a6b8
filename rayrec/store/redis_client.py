"""A Redis that keeps what it acknowledged: its append-only file is on and flushed at every write, or it is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rayrec.errors import SchemaError, Unavailable

T = TypeVar("T")
PREFIX = "{rayrec}:"
"""of every key: all in one hash slot, so that scripts may use them together"""
_TIMEOUT_S = 5.0
_DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
_EVICTS = "allkeys-"  # maxmemory policies that drop what has no time to live
_FULL_OR_BUSY = ("OOM", "MISCONF", "BUSY", "READONLY")


# a number never becomes less
_RAISE = """
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""


class DurableRedis:
    """A client. Raises SchemaError of a Redis that may lose what it acknowledged, Unavailable of one away."""

    def __init__(self, url: str):
        self.client: Any = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),  # a removal's steps may not be made twice
        )
        policy = self._setting("maxmemory-policy")
        if policy is not None and policy.startswith(_EVICTS):
            raise SchemaError(
                f"store: this Redis has maxmemory-policy {policy}, and could drop what it acknowledged; "
                "set 'maxmemory-policy noeviction' in its configuration"
            )
        for name, wanted in _DURABLE.items():
            found = self._setting(name)
            if found != wanted:
                raise SchemaError(
                    f"store: this Redis has {name} {found}, and could lose what it acknowledged; "
                    f"set '{name} {wanted}' in its configuration"
                )

    def raise_to(self, key: str, least: int) -> None:
        """Set a number that is less, or not there."""
        self.call(lambda: self.client.eval(_RAISE, 1, key, least))

    def _setting(self, name: str) -> str | None:
        try:
            return self.call(partial(self.client.config_get, name)).get(name)
        except redis.ResponseError as error:
            raise SchemaError(f"store: this Redis does not tell its {name}, on which durability depends") from error

    @staticmethod
    def call(work: Callable[[], T]) -> T:
        """What `work` answers. Raises SchemaError of a wrong password, Unavailable."""
        try:
            return work()
        except redis.AuthenticationError as error:
            raise SchemaError("store: Redis refuses the user or password of the URL") from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
            raise Unavailable(f"the store does not answer ({type(error).__name__}); try again") from error
        except redis.ResponseError as error:
            if isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError)) or str(error).startswith(_FULL_OR_BUSY):
                raise Unavailable(f"the store takes nothing now ({str(error).split(' ')[0]}); see its log") from error
            raise
