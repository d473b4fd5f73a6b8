"""A Redis that keeps what it acknowledged: its append-only file is on and flushed at every write, or it is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import redis

from rayrec.errors import SchemaError, Unavailable

T = TypeVar("T")
PREFIX = "{rayrec}:"
"""of every key: all in one hash slot, so that scripts may use them together"""
_TIMEOUT_S = 5.0
_DURABLE = {"appendonly": "yes", "appendfsync": "always"}


# a number never becomes less
_RAISE = """
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""


class DurableRedis:
    """A client. Raises SchemaError of a Redis that may lose what it acknowledged, Unavailable of one away."""

    def __init__(self, url: str):
        self.client: Any = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, health_check_interval=30
        )
        for name, wanted in _DURABLE.items():
            try:
                found = self.call(partial(self.client.config_get, name)).get(name)
            except redis.ResponseError as error:
                raise SchemaError(f"store: this Redis does not tell its {name}, which must be {wanted}") from error
            if found != wanted:
                raise SchemaError(
                    f"store: this Redis has {name} {found}, and could lose what it acknowledged; "
                    f"set '{name} {wanted}' in its configuration"
                )

    def raise_to(self, key: str, least: int) -> None:
        """Set a number that is less, or not there."""
        self.call(lambda: self.client.eval(_RAISE, 1, key, least))

    @staticmethod
    def call(work: Callable[[], T]) -> T:
        """What `work` answers. Raises SchemaError of a wrong password, Unavailable."""
        try:
            return work()
        except redis.AuthenticationError as error:
            raise SchemaError("store: Redis refuses the user or password of the URL") from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
            raise Unavailable(f"the store does not answer ({type(error).__name__}); try again") from error
