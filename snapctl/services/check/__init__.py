"""`check`: every page owned once, the space map right, every checksum right, every record sane.

A check reads the file as it was last committed and changes nothing. Nothing that stands in the file is relied on beyond
its checksum, and no finding ends the check: what can still be reached is still checked.
"""

from snapctl.services.check.container import check_backend, check_container
from snapctl.services.check.findings import Finding, Report, Severity

__all__ = ["Finding", "Report", "Severity", "check_backend", "check_container"]
