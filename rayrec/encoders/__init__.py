"""Pretrained models that turn texts and pictures into vectors."""
