"""Finding candidates: dense, lexical, by filter, by behaviour; and joining them."""
