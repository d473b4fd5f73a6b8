"""The command line. Every command says what it read, what it did, and where the result is."""

from rayrec.cli import ask, fit, live, service, stages  # each registers its commands
from rayrec.cli.base import app

__all__ = ["app", "ask", "fit", "live", "service", "stages"]
