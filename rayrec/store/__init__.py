"""Durable log of what shoppers do, and the state that follows from it."""

from rayrec.store.base import Event, EventStore, open_store

__all__ = ["Event", "EventStore", "open_store"]
