"""Prometheus metrics of one replica: counts, durations and sizes, never identities."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """One registry per replica object, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
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
        self.adverts = Counter("secagg_adverts", "Adverts accepted", ["task"], registry=registry)
        self.cohorts = Counter(
            "secagg_cohorts", "Cohorts that ended", ["task", "outcome"], registry=registry
        )
        self.open_cohorts = Gauge("secagg_open_cohorts", "Cohorts under way", registry=registry)
        self.devices = Counter(
            "secagg_devices", "Devices in ended cohorts", ["task", "fate"], registry=registry
        )
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
        self.epsilon = Gauge(
            "secagg_epsilon",
            "Headline epsilon (unamplified) in the task's last record, as computed when it was "
            "written; +Inf once a task without privacy is charged",
            ["task"],
            registry=registry,
        )
        self.releases = Gauge(
            "secagg_charges", "Releases and charged aborts", ["task"], registry=registry
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
