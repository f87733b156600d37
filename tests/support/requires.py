"""What tests call for and what comes with the system, not with Python: programs, and headers for the C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig

import pytest

# mke2fs and its like lie where an ordinary user's PATH may not look.
_ADMIN_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def needs(program: str, *, package: str) -> str:
    """Find a program, or skip the test that calls for it.

    Where skips are forbidden (see tests/conftest.py) a missing program fails the test instead. The package has to be
    in the list of .ci/run, which a test checks; for that, both arguments are given as literals.

    Args:
        program: the name of the program, such as ``mke2fs``.
        package: the Debian package to install for it, such as ``e2fsprogs``.

    Returns:
        The program's path.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMIN_DIRECTORIES])
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return found


def needs_header(header: str, *, package: str) -> None:
    """See that the C compiler finds a header, such as ``stdio.h`` or ``Python.h``, or skip the test as `needs` does."""
    include = sysconfig.get_path("include")
    look = [needs("gcc", package="gcc"), "-fsyntax-only", "-I", include, "-include", header, "-x", "c", os.devnull]
    if subprocess.run(look, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"there is no {header}: apt-get install {package}")
