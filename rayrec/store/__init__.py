"""Durable logs of what shoppers do and of how the catalog changes, and the state that follows from them."""

from rayrec.store.base import (
    CatalogLog,
    Event,
    EventStore,
    Wanted,
    default_store,
    file_in,
    open_catalog_log,
    open_store,
)

__all__ = ["CatalogLog", "Event", "EventStore", "Wanted", "default_store", "file_in", "open_catalog_log", "open_store"]
