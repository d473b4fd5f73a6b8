"""How good answers are, and whether a change makes them better."""
