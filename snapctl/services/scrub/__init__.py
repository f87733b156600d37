"""`scrub`: read and verify all that is live, go on past damage, and say whom it affects.

The check proves that the whole is consistent, in one committed state and under the lock: every page owned once, the
space map right. A scrub asks whether all that people have stored can still be read. It works beside writers, which it
lets in about once a second, and repairs what costs nothing to repair: a superblock copy, from the other one.
"""

from snapctl.services.scrub.container import scrub_backend, scrub_container
from snapctl.services.scrub.report import Affected, Damage, Report, Severity

__all__ = ["Affected", "Damage", "Report", "Severity", "scrub_backend", "scrub_container"]
