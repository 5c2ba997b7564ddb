"""Where load comes from: traces of real services, presets like them, and synthetic processes.

`plan(WorkloadSpec(...))` gives the requests of a run as `Planned`s, in order of time; `describe` what is kept of how
they were made.
"""

from dopd_loadgen.workload.plan import Schedule, describe, plan
from dopd_loadgen.workload.spec import WorkloadSpec

__all__ = ["Schedule", "WorkloadSpec", "describe", "plan"]
