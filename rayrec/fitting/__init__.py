"""Learning from a shop: encoders fitted to it (pairs, adapters, distillation), and what its shoppers want next."""
