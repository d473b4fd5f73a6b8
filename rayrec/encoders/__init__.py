"""Pretrained models that turn texts into vectors."""
