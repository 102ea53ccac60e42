"""Looks at everything that tenantsync needs, and says what is wrong and what to do.

`examination` has what a program calls. `provider` asks AuthVital, `books` the control database and
the inbox, `places` the tenants' databases, and `report` is what comes of it.
"""

from tenantsync.doctor.examination import examine
from tenantsync.doctor.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "examine"]
