"""Compiles snapctl/_native.c for the wheel, which goes without where there is no C compiler, or no Python.h."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

_NAME = "snapctl._native"


class NativeBuildHook(BuildHookInterface):
    """Adds the compiled core to a wheel; an editable installation finds it beside the source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell the builder what there is to pack and which Pythons and machines it fits."""
        self._scratch = tempfile.mkdtemp(prefix="snapctl-build-")
        extension = Extension(_NAME, ["snapctl/_native.c"], extra_compile_args=["-O2"], optional=True)
        command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
        command.build_lib = command.build_temp = self._scratch
        command.ensure_finalized()
        command.run()

        built = Path(command.get_ext_fullpath(_NAME))
        beside = Path("snapctl", built.name)
        if version == "editable":
            # A new file rather than new content: programs that run may have the old one in memory.
            beside.unlink(missing_ok=True)
        if not built.exists():
            self.app.display_warning("not compiled, see above: snapctl will do the same in Python, only more slowly")
            return
        if version == "editable":
            shutil.copy(built, beside)
        else:
            build_data["force_include"][str(built)] = str(beside)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made on the way."""
        shutil.rmtree(self._scratch)
