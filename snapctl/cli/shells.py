"""How the scripts in completions/ ask for candidates, whichever the shell.

They set ``_SNAPCTL_COMPLETE=complete_line`` and put the command line, quoted as it is typed and up to the cursor, in
``SNAPCTL_LINE``; the answer is a line for each candidate, with a few words about it after a tab. typer's own scripts
end a word at each ``@`` and put a space behind ``lab.snap/``, so ``--install-completion`` installs ours in their place.
"""

from __future__ import annotations

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

_SCRIPTS = {"snapctl": "bash", "_snapctl": "zsh", "snapctl.fish": "fish"}
"""The names under which the wheel installs the scripts, and the shells that they are for."""


class _LineComplete(ShellComplete):
    """Completion of a line that arrives whole."""

    name = "line"

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, without the program's, and that one (maybe empty)."""
        line = os.environ.get("SNAPCTL_LINE", "")
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1].isspace() else words.pop()
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Write one candidate, or nothing for one that no shell could take from a line."""
        if not item.value.isprintable():
            return ""
        about = " ".join((item.help or "").split())
        return f"{item.value}\t{about}"


def register() -> None:
    """Have click know this way of asking."""
    add_completion_class(_LineComplete)


def prefer_own_scripts() -> None:
    """Have typer install and show the scripts that came with the package, for the shells that it has one for."""
    from importlib.metadata import PackageNotFoundError, files

    from typer import _completion_shared

    try:
        installed = files("snapctl") or ()
    except PackageNotFoundError:  # run from a checkout without being installed
        return
    for path in installed:
        shell = _SCRIPTS.get(path.name) if "share" in path.parts else None
        if shell is not None:
            # typer fills its templates in with the % operator.
            _completion_shared._completion_scripts[shell] = path.read_text(encoding="utf-8").replace("%", "%%")
