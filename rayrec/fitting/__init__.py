"""Fitting encoders to a shop: pairs mined from its own data, losses, the training loop, adapters, distillation."""
