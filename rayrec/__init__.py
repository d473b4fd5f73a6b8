"""rayrec: commerce search and recommendation on Ray.

>>> from rayrec import Engine
>>> engine = Engine.open("workspace")                                      # doctest: +SKIP
>>> engine.search("usb c cable", filters={"brand": ["Anker"]}, k=10).hits  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayrec.engine import Engine

__version__ = "0.1.0"
__all__ = ["Engine", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `Engine` on first use, so that `import rayrec` costs nothing."""
    if name == "Engine":
        from rayrec.engine import Engine

        return Engine
    raise AttributeError(f"module 'rayrec' has no attribute {name!r}")
