"""Process health: who is there, with how much CPU, memory and open files, and what goes wrong on the bus."""

from panel import Dashboard, Panel, Query, Row

EACH = "{{job}} {{instance}}"

THERE = (
    Panel("Targets", "Processes that answer on their operator port, and those that are known and do not.", "short",
          (Query("sum by (job) (up)", "{{job}}"), Query("count(up == 0) or vector(0)", "silent")), axis="processes",
          least=0),
    Panel("Versions", "What runs, and since when.", "dateTimeAsIso",
          (Query("max by (job, service, version, instance) (dopd_build_info * on (instance) group_left () "
                 "process_start_time_seconds) * 1000"),), "table"),
    Panel("Age", "Time since the process was started: a drop to 0 is a restart.", "s",
          (Query("time() - process_start_time_seconds", EACH),), least=0),
    Panel("Broker within reach", "1 while this process is connected.", "none",
          (Query("min by (job) (dopd_bus_connected)", "{{job}}"),), axis="connected", least=0, most=1),
)  # fmt: skip

USE = (
    Panel("CPU", "Of one core; the event loop of a DOPD service has one and no more.", "percentunit",
          (Query("rate(process_cpu_seconds_total[$__rate_interval])", EACH),), least=0),
    Panel("Memory", "Resident.", "bytes", (Query("process_resident_memory_bytes", EACH),), least=0),
    Panel("Open files", "Of those that the system allows; connections are files.", "percentunit",
          (Query("process_open_fds / process_max_fds", EACH),), least=0),
    Panel("Bytes of incomplete requests", "What gateways hold of requests that have not come in whole.", "bytes",
          (Query("sum by (job) (dopd_http_held_bytes)", "{{job}}"),), least=0),
)  # fmt: skip

BUS = (
    Panel("Faults of the bus", "By kind. With slow_consumer and outbox_overflow messages were dropped.", "short",
          (Query("sum by (job, kind) (increase(dopd_bus_faults_total[$__rate_interval]))", "{{job}} {{kind}}"),),
          axis="faults", bars=True, stack=True, least=0),
    Panel("Answer to scrapes", "How long a process takes to tell its numbers: a busy event loop shows here.", "s",
          (Query("max by (job) (scrape_duration_seconds)", "{{job}}"),), least=0),
)  # fmt: skip

DASHBOARD = Dashboard(
    "dopd-processes", "DOPD: processes", "Who is there, and with how much CPU, memory and open files.",
    (Row("There", THERE), Row("Use", USE), Row("Bus", BUS)),
)  # fmt: skip
