"""snapctl: thin volumes and their snapshot trees in a single file.

The package is the public Python API: ``from snapctl import Container``. Importing it loads nothing else; each name
below brings its module in when it is first used, so that a command pays only for what it needs.

The errors raised by all of it are in `snapctl.errors`.
"""

# Not imported from typing, which would cost more than the rest of this module; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from snapctl.engine.container import Container
    from snapctl.engine.model import Cow, Extent, Kind, Usage
    from snapctl.engine.node import Node

__version__ = "0.1.0"

__all__ = ["Container", "Cow", "Extent", "Kind", "Node", "Usage", "__version__"]

_HOMES = {
    "Container": "snapctl.engine.container",
    "Cow": "snapctl.engine.model",
    "Extent": "snapctl.engine.model",
    "Kind": "snapctl.engine.model",
    "Node": "snapctl.engine.node",
    "Usage": "snapctl.engine.model",
}

# Hidden from type checkers, which would otherwise take any name for an attribute of the package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the module that a public name lives in, the first time that the name is used."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
