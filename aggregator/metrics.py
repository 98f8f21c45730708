"""Prometheus metrics of one replica: counts, durations and sizes, never identities.

What a process counts starts at zero with it. What :data:`STORED` lists is state of the service: it
is read before each scrape (:mod:`aggregator.measures`), so that a restart forgets nothing of it and
every replica shows the same.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from aggregator import logs
from secagg import __version__

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every counter, which is not a measurement
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
Family = type[CounterMetricFamily] | type[GaugeMetricFamily]

STORED: dict[str, tuple[Family, tuple[str, ...], str]] = {
    # -- budgets
    "secagg_tasks": (GaugeMetricFamily, ("state",), "Tasks, by state"),
    "secagg_task_open": (GaugeMetricFamily, ("task",), "1 if the task forms cohorts"),
    "secagg_charges": (GaugeMetricFamily, ("task",), "Releases and charged aborts"),
    "secagg_charges_left": (GaugeMetricFamily, ("task",), "Charges that the budget has left"),
    "secagg_epsilon": (
        GaugeMetricFamily,
        ("task", "unit"),
        "Epsilon spent per unit, unamplified, as in the task's last record; none without noise",
    ),
    "secagg_epsilon_left": (
        GaugeMetricFamily,
        ("task", "unit"),
        "The task's max_epsilon less what is spent; none without such a limit",
    ),
    "secagg_release_age_seconds": (
        GaugeMetricFamily,
        ("task",),
        "Time since the last release, or since the task was made",
    ),
    # -- cohorts
    "secagg_open_cohorts": (GaugeMetricFamily, (), "Cohorts under way"),
    "secagg_cohort_devices": (
        GaugeMetricFamily,
        ("task", "phase"),
        "Devices in the roster of the open cohort",
    ),
    "secagg_cohort_devices_due": (
        GaugeMetricFamily,
        ("task", "phase"),
        "Devices that the phase still waits for",
    ),
    "secagg_cohort_deadline_seconds": (
        GaugeMetricFamily,
        ("task", "phase"),
        "Time to the deadline of the phase, negative after it; none where it has no deadline",
    ),
    "secagg_cohort_phase_age_seconds": (
        GaugeMetricFamily,
        ("task", "phase"),
        "Time since this replica saw the phase begin",
    ),
    "secagg_cohort_stuck": (
        GaugeMetricFamily,
        ("task", "phase"),
        "1 if the phase should have ended long ago",
    ),
    "secagg_cohorts": (
        CounterMetricFamily,
        ("task", "outcome", "reason"),
        "Cohorts that ended; a release has no reason",
    ),
    "secagg_devices": (CounterMetricFamily, ("task", "fate"), "Devices in ended cohorts"),
    "secagg_drop_outs": (
        CounterMetricFamily,
        ("task", "step"),
        "Devices that did not come through a step of an ended cohort",
    ),
    "secagg_waiting_devices": (
        GaugeMetricFamily,
        ("task",),
        "Devices that wait for a cohort, those included that may not take part",
    ),
    "secagg_devices_not_dealing": (
        GaugeMetricFamily,
        ("task",),
        "Devices that dealt in none of the last cohorts, at least three, that took them, and may "
        "be in the next",
    ),
    # -- ledger and witnesses
    "secagg_ledger_records": (GaugeMetricFamily, (), "Records in the ledger"),
    "secagg_witness_lag_records": (
        GaugeMetricFamily,
        ("witness",),
        "Records of the ledger that the witness has not cosigned for this replica",
    ),
    "secagg_witness_answer_age_seconds": (
        GaugeMetricFamily,
        ("witness",),
        "Time since the witness's last cosignature; none before the first",
    ),
    # -- the replica and its stores
    "secagg_ready": (GaugeMetricFamily, (), "1 if /readyz says ready"),
    "secagg_tls_left_seconds": (
        GaugeMetricFamily,
        (),
        "Time to the end of the certificate that serves, negative after it; none without TLS",
    ),
    "secagg_tls_renewal_failed": (
        GaugeMetricFamily,
        (),
        "1 if what lies in the files of certificate and key cannot be used, and the old one serves",
    ),
    "secagg_database_bytes": (GaugeMetricFamily, (), "Size of the database"),
    "secagg_blob_bytes": (
        GaugeMetricFamily,
        (),
        "Size of the folder of blobs; none where they are in an object store",
    ),
    "secagg_disk_free_bytes": (
        GaugeMetricFamily,
        ("folder",),
        "Free space of the file systems of data, blobs and a SQLite database that lies elsewhere",
    ),
    "secagg_disk_mark_bytes": (
        GaugeMetricFamily,
        ("folder",),
        "disk_free_min: with less free, no cohort is formed and the replica is not ready",
    ),
    "secagg_disk_size_bytes": (GaugeMetricFamily, ("folder",), "Size of that file system"),
}


class Stored(Collector):
    """What was last read of the service's state, as metric families."""

    def __init__(self) -> None:
        self._samples: Mapping[str, Mapping[tuple[str, ...], float]] = {}

    def show(self, samples: Samples) -> None:
        """Show these and nothing of before."""
        self._samples = samples.found

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        for name, (kind, labels, text) in STORED.items():
            family = kind(name, text, labels=labels)
            for values, number in self._samples.get(name, {}).items():
                family.add_metric(values, number)
            yield family


class Samples:
    """Values of :data:`STORED`, by name and label values."""

    def __init__(self) -> None:
        self.found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)

    def put(self, name: str, value: float, *labels: str) -> None:
        """Raises: KeyError: there is no such metric."""
        assert len(labels) == len(STORED[name][1])  # noqa: S101  by construction
        self.found[name][labels] = value

    def add(self, name: str, value: float, *labels: str) -> None:
        """As :meth:`put`, to what is there."""
        self.put(name, self.found[name].get(labels, 0.0) + value, *labels)


class Metrics:
    """One registry per replica object, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.stored = Stored()
        registry.register(self.stored)
        self.build = Gauge(
            "secagg_build_info", "What runs", ["version", "python"], registry=registry
        )
        self.build.labels(__version__, platform.python_version()).set(1)
        self.requests = Counter(
            "secagg_http_requests", "Answered requests", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "secagg_http_request_seconds",
            "Time to answer (long polls wait on purpose)",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.refusals = Counter(
            "secagg_refusals", "Refused requests and connections", ["reason"], registry=registry
        )
        self.connections = Gauge(
            "secagg_connections", "Connections at the public port", registry=registry
        )
        self.connections_max = Gauge(
            "secagg_connections_max", "Connections that the public port takes", registry=registry
        )
        self.dashboard_streams = Gauge(
            "secagg_dashboard_streams",
            "Pages of the dashboard that are kept up to date",
            registry=registry,
        )
        self.poll_failures = Counter(
            "secagg_poll_failures",
            "Looks at what other replicas committed that failed, such as without a database",
            registry=registry,
        )
        self.scrape_failures = Counter(
            "secagg_scrape_failures",
            "Scrapes for which the service's state could not be read",
            registry=registry,
        )
        self.log_failures = logs.failures  # of the process, which has one log
        registry.register(self.log_failures)
        self.adverts = Counter("secagg_adverts", "Adverts accepted", ["task"], registry=registry)
        self.bans = Counter(
            "secagg_bans", "Devices banned, by what for", ["kind"], registry=registry
        )
        self.strikes = Counter(
            "secagg_strikes", "Strikes of devices in question", ["kind"], registry=registry
        )
        self.roster_refusals = Counter(
            "secagg_roster_refusals",
            "Devices that refused the roster of their cohort",
            ["task", "reason"],
            registry=registry,
        )
        self.upload_bytes = Counter(
            "secagg_upload_bytes", "Bytes of masked vectors received", registry=registry
        )
        self.commit_seconds = Histogram(
            "secagg_commit_seconds",
            "Step and commit of a batch of events",
            buckets=_SECONDS,
            registry=registry,
        )
        self.opening_seconds = Histogram(
            "secagg_opening_seconds",
            "Removing the masks from a sum",
            buckets=_SECONDS,
            registry=registry,
        )

    def forget_task(self, task: str) -> None:
        """Show a task that has ended no longer."""
        for counter in (self.adverts, self.roster_refusals):
            counter.remove_by_labels({"task": task})

    def render(self) -> bytes:
        return generate_latest(self.registry)
