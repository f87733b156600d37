"""How the scripts in completions/ ask for candidates, whichever the shell.

They set ``_SNAPCTL_COMPLETE=complete_line`` and put the command line, quoted as it is typed and up to the cursor, in
``SNAPCTL_LINE``; the answer is a line for each candidate, with a few words about it after a tab. (The scripts that
``--install-completion`` writes are typer's own and ask in typer's ways.)
"""

from __future__ import annotations

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string


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
