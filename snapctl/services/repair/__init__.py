"""`check --repair`: keep all that can still be read, and say exactly what cannot.

A repair is one transaction. It looks at the container as `check` does (`plan`), decides where records belong whose
relatives are lost (`lineage`), and writes what has to change to the end of the file (`rebuild`). The state before stays
whole behind the other superblock slot: until something else is written, the repair can be undone.
"""

from snapctl.services.repair.container import Repair, repair_backend, repair_container, undo_repair_of

__all__ = ["Repair", "repair_backend", "repair_container", "undo_repair_of"]
