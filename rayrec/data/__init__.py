"""Foreign rows in, ITEMS and EVENTS out; what cannot be used goes to quarantine, never away."""
