"""Durable log of what shoppers do, and the state that follows from it."""

from rayrec.store.base import Event, EventStore, file_in, open_store

__all__ = ["Event", "EventStore", "file_in", "open_store"]
