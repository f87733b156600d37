"""Imports point down only, and each library and system call has the one layer that may use it.

Read from the syntax trees, so that an import inside a function, or one for type checkers alone, obeys as well. The
layers, lowest first: errors, units, format, storage, engine, services, cli.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "snapctl"

LAYERS = ("errors", "units", "format", "storage", "engine", "services", "cli", "__main__")

# The package itself only names the public API, so it may look down as far as services may.
FACADE = "snapctl"
FACADE_RANK = LAYERS.index("services")
FACADE_NAMES = {"__version__"}

# Top-level module -> the parts of snapctl that may import it. A part is a module or a package with all in it.
LIBRARIES = {
    "click": ["snapctl.cli"],
    "construct": ["snapctl.format", "snapctl.services.nbd.wire"],
    "ctypes": ["snapctl.storage.backend"],
    "mfusepy": ["snapctl.services.mount.binding"],
    "prometheus_client": ["snapctl.services.metrics"],
    "rich": ["snapctl.cli.render"],
    "typer": ["snapctl.cli"],
}

# The compiled core, which stands below all layers, and those that have the twins of its functions.
NATIVE = "snapctl._native"
NATIVE_USERS = ["snapctl.format", "snapctl.storage", "snapctl.engine", "snapctl.services.nbd"]
NATIVE_HEADERS = {
    "Python.h",
    "arm_acle.h",
    "errno.h",
    "immintrin.h",
    "stdarg.h",
    "stdint.h",
    "stdlib.h",
    "string.h",
    "sys/uio.h",
}

# Format turns bytes into values and back; a module in it that can reach a file has lost its way.
NO_INPUT_OUTPUT = ["snapctl.format"]
INPUT_OUTPUT_MODULES = {"io", "mmap", "os", "pathlib", "socket", "subprocess"}

# The calls that the container's durability rests on: made in one place, which tests replace to crash and to fail.
FILE_CALLS = {
    "copy_file_range",
    "fallocate",
    "fdatasync",
    "fsync",
    "ftruncate",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "sync",
    "truncate",
}
FILE_CALLERS = [
    "snapctl.storage.backend",
    # Exceptions: reads the files that are imported, and writes those that are exported or read to. They are the user's,
    # never the container, and want the same bulk calls.
    "snapctl.services.source",
    "snapctl.services.target",
]

# The terminal and the environment are the command line's; below it, values come as arguments and go as results.
TERMINAL_USERS = ["snapctl.cli", "snapctl.__main__"]
STREAMS = {"stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True)
class Import:
    """One module named by an import statement, and the names taken from it."""

    line: int
    module: str
    names: tuple[str, ...]
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One module of snapctl, as its source says."""

    name: str
    source: str
    is_package: bool = False
    others: frozenset[str] = field(default=frozenset(), repr=False)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.name)

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._imports(self.tree, typing_only=False))

    @cached_property
    def uses(self) -> list[tuple[int, str]]:
        """Lines with the dotted names used there, such as ``os.fsync``, under the names that they were imported by."""
        known = {alias.asname: alias.name for alias in self._aliases(ast.Import) if alias.asname}
        known |= {"print": "print", "open": "open"}
        found = [(i.line, f"{i.module}.{name}") for i in self.imports for name in i.names]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.append((node.lineno, f"{known.get(node.value.id, node.value.id)}.{node.attr}"))
            elif isinstance(node, ast.Name) and node.id in {"print", "open"}:
                found.append((node.lineno, node.id))
        return found

    def _aliases(self, kind: type[ast.Import]) -> Iterator[ast.alias]:
        for node in ast.walk(self.tree):
            if isinstance(node, kind):
                yield from node.names

    def _imports(self, parent: ast.AST, *, typing_only: bool) -> Iterator[Import]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(node.lineno, alias.name, (), typing_only)
            elif isinstance(node, ast.ImportFrom):
                yield from self._import_from(node, typing_only=typing_only)
            elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                for child in node.body:
                    yield from self._imports(ast.Module([child], []), typing_only=True)
                for child in node.orelse:
                    yield from self._imports(ast.Module([child], []), typing_only=typing_only)
            else:
                yield from self._imports(node, typing_only=typing_only)

    def _import_from(self, node: ast.ImportFrom, *, typing_only: bool) -> Iterator[Import]:
        base = node.module or ""
        if node.level:
            parts = self.name.split(".")
            above = parts[: len(parts) - node.level + self.is_package]
            base = ".".join([*above, base] if base else above)
        # "from snapctl.engine import diff" names a module, not something inside one.
        names = [alias.name for alias in node.names]
        modules = [name for name in names if f"{base}.{name}" in self.others]
        for name in modules:
            yield Import(node.lineno, f"{base}.{name}", (), typing_only)
        if rest := tuple(name for name in names if name not in modules):
            yield Import(node.lineno, base, rest, typing_only)


def is_within(module: str, parts: list[str]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def rank(module: str) -> int:
    """How high a module of snapctl stands; those of one layer stand equally high."""
    return FACADE_RANK if module == FACADE else LAYERS.index(module.split(".")[1])


def import_violations(module: Module) -> Iterator[str]:
    for found in module.imports:
        top = found.module.split(".")[0]
        where = f"{module.name}:{found.line}"
        if found.module == FACADE:
            if not set(found.names) <= FACADE_NAMES:
                yield f"{where}: only __version__ is taken from the package itself; name the module"
        elif found.module == NATIVE:
            if not is_within(module.name, NATIVE_USERS):
                yield f"{where}: imports {NATIVE}, which only {' and '.join(NATIVE_USERS)} may"
        elif top == FACADE:
            if found.module.split(".")[1] not in LAYERS:
                yield f"{where}: {found.module} belongs to no layer"
            elif rank(found.module) > rank(module.name):
                yield f"{where}: imports {found.module}, which is a layer above"
        elif top in LIBRARIES and not is_within(module.name, LIBRARIES[top]):
            yield f"{where}: imports {top}, which only {' and '.join(LIBRARIES[top])} may"
        elif top in INPUT_OUTPUT_MODULES and is_within(module.name, NO_INPUT_OUTPUT):
            yield f"{where}: imports {top}, but format has no business with files"


def use_violations(module: Module) -> Iterator[str]:
    file_calls = {f"os.{name}" for name in FILE_CALLS}
    terminal = {"print", *(f"sys.{name}" for name in STREAMS), *(f"os.{name}" for name in ENVIRONMENT)}
    for line, name in module.uses:
        where = f"{module.name}:{line}"
        if name in file_calls and not is_within(module.name, FILE_CALLERS):
            yield f"{where}: {name} belongs to {FILE_CALLERS[0]}"
        elif name in terminal and not is_within(module.name, TERMINAL_USERS):
            yield f"{where}: {name} belongs to the command line"
        elif name == "open" and is_within(module.name, NO_INPUT_OUTPUT):
            yield f"{where}: opens a file, but format has no business with files"


def violations(module: Module) -> list[str]:
    return [*import_violations(module), *use_violations(module)]


def load_package() -> list[Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    names = {}
    for path in paths:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[path] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    others = frozenset(names.values())
    return [Module(names[p], p.read_text(encoding="utf-8"), p.name == "__init__.py", others) for p in paths]


MODULES = load_package()


def test_every_module_belongs_to_a_layer():
    strays = [m.name for m in MODULES if m.name != FACADE and m.name.split(".")[1] not in LAYERS]
    assert not strays
    assert {"snapctl", "snapctl.errors", "snapctl.units"} <= {m.name for m in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_module_keeps_to_its_layer(module: Module):
    assert violations(module) == []


def test_the_compiled_core_reaches_nothing_but_its_arguments():
    source = (PACKAGE / "_native.c").read_text(encoding="utf-8")
    assert set(re.findall(r"#\s*include\s*[<\"](.+?)[>\"]", source)) <= NATIVE_HEADERS
    forbidden = (
        r"\bPy(?:Import|Run|Eval|Sys|File)_\w+|\bPyOS_\w+|\b(?:printf|syscall|getenv|system|exit|abort|malloc)\("
    )
    assert not re.findall(forbidden, source)


def test_modules_do_not_import_each_other_in_a_circle():
    """Within a layer there is an order too. What is imported for type checkers alone does not count here."""
    graph = {m.name: {i.module for i in m.imports if not i.typing_only} - {FACADE} for m in MODULES}
    del graph[FACADE]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("snapctl.errors", "from snapctl.units import parse_size"),
        ("snapctl.format.table", "from snapctl.storage import backend"),
        ("snapctl.format.table", "import snapctl.storage.backend"),
        ("snapctl.storage.commit", "def f():\n    from snapctl.engine.container import Container"),
        ("snapctl.engine.diff", "if TYPE_CHECKING:\n    from snapctl.services.check import Report"),
        ("snapctl.engine.diff", "from snapctl import Container"),
        ("snapctl.engine.diff", "from ..cli import render"),
        ("snapctl.services.check", "from .. import cli"),
        ("snapctl.services.check", "import snapctl.cli.app as app"),
        ("snapctl.engine.diff", "from snapctl.helpers import chunks"),
        ("snapctl.cli.list", "from snapctl._native import checksums"),
        ("snapctl.engine.diff", "from snapctl import _native"),
        ("snapctl.services.check", "import typer"),
        ("snapctl.services.check", "def f():\n    from rich.table import Table"),
        ("snapctl.cli.list", "from rich.table import Table"),
        ("snapctl.engine.tree", "from construct import Struct"),
        ("snapctl.services.nbd.server", "import construct as c"),
        ("snapctl.format.layout", "import os"),
        ("snapctl.format.layout", "data = open('lab.snap', 'rb')"),
        ("snapctl.engine.volume", "import os\nos.pread(3, 1, 0)"),
        ("snapctl.engine.volume", "import os as system\nsystem.fsync(3)"),
        ("snapctl.storage.lock", "from os import ftruncate"),
        ("snapctl.storage.pages", "import os\nwrite = os.pwritev"),
        ("snapctl.storage.space", "import ctypes"),
        ("snapctl.services.check", "print('fine')"),
        ("snapctl.engine.diff", "import sys\nsys.stdout.write('')"),
        ("snapctl.engine.diff", "from sys import stderr"),
        ("snapctl.storage.lock", "import os\nwait = os.environ['WAIT']"),
        ("snapctl.storage.lock", "from os import getenv"),
    ],
)
def test_a_breach_of_the_layers_is_found(name: str, source: str):
    others = frozenset({"snapctl.storage.backend", "snapctl.cli", "snapctl.cli.render"})
    assert len(violations(Module(name, source, others=others))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("snapctl", "if TYPE_CHECKING:\n    from snapctl.engine.model import Node"),
        ("snapctl.units", "from snapctl.errors import BadSize"),
        ("snapctl.format.layout", "import construct"),
        ("snapctl.services.nbd.wire", "from construct import Struct"),
        ("snapctl.format.checksum", "from snapctl._native import checksums"),
        ("snapctl.services.nbd.server", "from snapctl._native import checksums"),
        ("snapctl.storage.backend", "import os\nos.pread(3, 1, 0)"),
        ("snapctl.storage.pages", "import os\nname = os.fspath(path)\nbackend.pwritev(buffers, 0)"),
        ("snapctl.services.source", "import os\nos.copy_file_range(3, 4, 9)"),
        ("snapctl.services.check", "from snapctl import __version__"),
        ("snapctl.cli.render", "from rich.table import Table\nprint('fine')"),
        ("snapctl.cli.app", "import os, sys, typer\nsys.stdout.write(os.environ['HOME'])"),
        ("snapctl.__main__", "from snapctl.cli.app import main"),
    ],
)
def test_what_the_layers_allow_passes(name: str, source: str):
    assert violations(Module(name, source)) == []
