"""The compiled core: there where it can be, like its twins in Python to the letter, and never a crash or a leak.

A function gets its tests by a line in PAIRS, and a line for each wrong call in WRONG_CALLS.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import mmap
import os
import subprocess
import sys
import sysconfig
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapctl import Container
from snapctl.format.checksum import pure_checksums
from tests.support.requires import needs, needs_header

SOURCE = Path(__file__).resolve().parent.parent / "snapctl" / "_native.c"

# Long ones of random bytes, since Hypothesis itself draws few bytes.
_bytes = st.binary() | st.builds(lambda seed, size: Random(seed).randbytes(size), st.integers(), st.integers(0, 16_000))
_buffers = _bytes | st.builds(bytearray, _bytes)
_piece_sizes = st.integers(1, 600) | st.integers(1, 20_000) | st.sampled_from([-1, 0, 512, 4096, 2**63, 2**80])

# The pure function of each pair -> arguments for both. The compiled one is named without the `pure_`.
PAIRS: dict[Callable[..., Any], st.SearchStrategy[tuple[Any, ...]]] = {
    pure_checksums: st.tuples(_buffers, _piece_sizes),
}

WRONG_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception]]] = [
    (pure_checksums, (), TypeError),
    (pure_checksums, (b"data",), TypeError),
    (pure_checksums, (b"data", 1, 1), TypeError),
    (pure_checksums, ("data", 1), TypeError),
    (pure_checksums, (None, 1), TypeError),
    (pure_checksums, ([1, 2], 1), TypeError),
    (pure_checksums, (b"data", "1"), TypeError),
    (pure_checksums, (b"data", 1.0), TypeError),
    (pure_checksums, (b"data", None), TypeError),
    (pure_checksums, (b"data", 0), ValueError),
    (pure_checksums, (b"", -1), ValueError),
    (pure_checksums, (b"data", -(2**80)), ValueError),
    (pure_checksums, (memoryview(b"scattered")[::2], 4), BufferError),
    (pure_checksums, (memoryview(b"backwards")[::-1], 4), BufferError),
]


def compiled(pure: Callable[..., Any], module: ModuleType | None = None) -> Callable[..., Any]:
    """The compiled twin of a pure function; a skipped test where there is none."""
    if module is None:
        module = pytest.importorskip("snapctl._native", reason="snapctl was installed without its compiled core")
    found: Callable[..., Any] = getattr(module, pure.__name__.removeprefix("pure_"))
    return found


def outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What a call returns or the class of what it raises, and its arguments as they are afterwards."""
    arguments = copy.deepcopy(arguments)
    try:
        return function(*arguments), arguments
    except Exception as error:  # noqa: BLE001 - whatever it is, the twin has to raise it too
        return type(error), arguments


def build(directory: Path, *flags: str) -> Path:
    """Compile the core by itself, with every warning an error."""
    needs_header("stdio.h", package="libc6-dev")
    needs_header("Python.h", package="python3-dev")
    made = directory / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [
        needs("gcc", package="gcc"),
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Wno-sign-conversion",
        "-Werror",
    ]
    command += [*flags, "-shared", "-fPIC", "-I", sysconfig.get_path("include"), str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    return made


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("snapctl._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_there_where_it_can_be_compiled():
    needs_header("stdio.h", package="libc6-dev")
    needs_header("Python.h", package="python3-dev")
    assert importlib.util.find_spec("snapctl._native") is not None, "install snapctl anew to have it compiled"


def test_every_function_has_a_twin_that_it_replaces():
    native = pytest.importorskip("snapctl._native", reason="snapctl was installed without its compiled core")
    functions = {name for name in vars(native) if not name.startswith("__")}
    assert functions == {pure.__name__.removeprefix("pure_") for pure in PAIRS}
    for pure in PAIRS:
        assert compiled(pure, sys.modules[pure.__module__]) is compiled(pure)


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
@given(data=st.data())
def test_compiled_and_pure_do_the_same(pure: Callable[..., Any], data: st.DataObject):
    arguments = data.draw(PAIRS[pure])
    assert outcome(compiled(pure), arguments) == outcome(pure, arguments)


@pytest.mark.parametrize(("pure", "arguments", "error"), WRONG_CALLS)
def test_both_refuse_a_wrong_call_with_the_same_error(
    pure: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception]
):
    with pytest.raises(error):
        pure(*arguments)
    with pytest.raises(error):
        compiled(pure)(*arguments)


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
def test_neither_takes_names_for_arguments(pure: Callable[..., Any]):
    for function in pure, compiled(pure):
        with pytest.raises(TypeError):
            function(data=b"data", size=1)


def test_buffers_of_every_kind_have_the_checksums_of_their_bytes():
    plain = bytes(range(256)) * 40
    with mmap.mmap(-1, len(plain)) as mapped:
        mapped[:] = plain
        kinds = [bytearray(plain), memoryview(plain), memoryview(bytearray(plain)), array("Q", plain), mapped]
        kinds += [memoryview(b"..." + plain + b".")[3:-1], memoryview(plain).cast("I")]
        kinds += [memoryview(plain).cast("B", (40, 256))]
        for size in (1, 7, 512, 4096, len(plain), len(plain) + 1):
            expected = pure_checksums(plain, size)
            for kind in kinds:
                assert compiled(pure_checksums)(kind, size) == pure_checksums(kind, size) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("pure", PAIRS, ids=lambda pure: pure.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_no_call_keeps_memory_or_a_reference(pure: Callable[..., Any], data: st.DataObject):
    function, drawn, calls = compiled(pure), data.draw(PAIRS[pure]), 500
    arguments = copy.deepcopy(drawn)
    outcome(function, arguments)
    references = sum(map(sys.getrefcount, arguments))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            outcome(function, arguments)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Python itself keeps a few more or fewer from time to time, but not one for each call.
    assert sum(map(sys.getrefcount, arguments)) < references + calls
    assert after - before < calls * sys.getsizeof(0) / 2


@pytest.mark.parametrize("flags", [(), ("-DPORTABLE_ONLY",)], ids=["with-the-processors-help", "portable"])
def test_buffers_of_every_length_have_the_right_checksum(flags: tuple[str, ...], tmp_path: Path):
    """Each way of dividing a buffer into streams of words and a rest comes up."""
    checksums = compiled(pure_checksums, load(build(tmp_path, *flags)))
    data = memoryview(Random(1).randbytes(13_001))[1:]
    for length in [*range(300), *range(300, 13_000, 23)]:
        assert checksums(data[:length], 13_000) == pure_checksums(data[:length], 13_000), length


def test_sanitizers_find_nothing_in_it(tmp_path: Path):
    """Reads and writes outside of buffers, and what C leaves undefined, end this run of the tests above."""
    made = build(tmp_path, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = subprocess.run(
        [needs("gcc", package="gcc"), "-print-file-name=libasan.so"], capture_output=True, check=True, text=True
    )
    code = """
import importlib.util, sys, pytest
spec = importlib.util.spec_from_file_location("snapctl._native", sys.argv[1])
sys.modules["snapctl._native"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["snapctl._native"])
chosen = ["-k", "compiled_and_pure or refuse or every_kind"]
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, sys.argv[2]]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, made, __file__],
        cwd=SOURCE.parent.parent,
        # Python frees not everything at its end, and its own allocator would hide the ends of its objects.
        env=os.environ
        | {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_commands_work_without_it(tmp_path: Path):
    code = """
import sys
sys.modules["snapctl._native"] = None
from snapctl.__main__ import main
from snapctl.format import checksum
assert checksum.checksums is checksum.pure_checksums
main()
"""
    data = bytes(range(256)) * 1024

    def snapctl(*arguments: str, given: bytes = b"") -> bytes:
        command = [sys.executable, "-c", code, *arguments]
        run = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, check=False, timeout=60)
        assert (run.returncode, run.stderr) == (0, b"")
        return run.stdout

    snapctl("create", "lab.snap/db", "--size", "1M")
    snapctl("write", "lab.snap/db", "--offset", "6000", given=data)
    snapctl("snapshot", "lab.snap/db@mon")
    snapctl("write", "lab.snap/db", given=bytes(9000))
    assert snapctl("read", "lab.snap/db@mon", "--offset", "6000", "--length", str(len(data))) == data
    assert b"no errors" in snapctl("check", "lab.snap")

    with Container.open(str(tmp_path / "lab.snap")) as lab:
        assert lab["db"].read(9000, 1000) == data[3000:4000]
