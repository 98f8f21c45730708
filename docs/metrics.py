"""Writes ``docs/metrics.md`` from the registry of ``aggregator.metrics``.

python -m docs.metrics > docs/metrics.md
"""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase

from aggregator.measures import CACHED_S, ENDED_SHOWN_S, SIZES_CACHED_S
from aggregator.metrics import STORED, Metrics

_PAGE = """# Metrics, alerts and the dashboard

`secagg serve` shows `/metrics` at its admin port, in Prometheus' text format. This page is
written by `python -m docs.metrics`; a test compares it with what the service exports.

## State of the service

Read from the database before a scrape, at most once in {cached:g} s (sizes of folders: once in
{walked:g} s). So a restart forgets nothing, and every replica shows the same; only the deadline
and the age of a phase, witnesses and disks are as each replica sees them. Where the database
cannot be read these are missing, `secagg_ready` is 0 and `secagg_scrape_failures_total` rises: no
value of before passes for one of now.

A task that has spent its budget leaves all metrics {shown:g} days after its last charge. No
metric names a device, a partner, a cohort or a digest.

{stored}

- **Epsilon** is there for each unit that the task protects: 0 before the first charge, then as in
  the task's last record. A task without noise has none, since no epsilon bounds what its sums
  show.
- **Steps** of `secagg_drop_outs_total` are the phases of [states.md](states.md). Cohorts that
  ended before an upgrade to this version are not in it. In the last step of a release nobody is
  lost: who has not answered was not needed.
- **A stuck cohort** is one whose deadline passed 60 s ago, or which has worked for 30 minutes in
  a phase without a deadline (`opening`, `releasing`).
- **A device that never deals** has been in at least three cohorts in a row, and dealt in none.
  The log (`device-never-deals`) and the task's page name its pseudonym of the day,
  `secagg device list` its key. It is told no longer when it deals, when it is banned or revoked,
  when its task has ended, or after seven days without a cohort.
- **A witness's lag** is of this replica, which asks by itself. A witness with a lag is silent, or
  refuses.

## What a replica counts

Begins at 0 with each start of the process.

{process}

## The service's own pages

The dashboard at `/` of the admin port: [operations.md](operations.md#dashboard).

## Prometheus and Grafana

```yaml
# prometheus.yml
rule_files: [alerts.yml]          # deploy/prometheus/alerts.yml
scrape_configs:
  - job_name: secagg
    static_configs:
      - targets: [replica-1:8081, replica-2:8081]   # the admin ports
```

`deploy/prometheus/alerts.yml` has a rule for a budget that is nearly spent, no release for a day,
cohorts that end without a release, a stuck cohort, a silent witness, poll failures, a disk that
is low, a log that cannot be written, a replica that is not ready, one of several that answers no
scrape, no replica at all, connections near their cap, and a device that never deals.
`deploy/grafana/secagg.json` is a dashboard to import; it asks for a Prometheus data source.

A test brings a real service into each of these troubles, and lets promtool say which rules its
series fire: each its own, and none on a service at rest. It needs `promtool`, of Debian's package
`prometheus`.
"""


def _table(rows: list[tuple[str, str, tuple[str, ...], str]]) -> str:
    head = ["| metric | kind | labels | what |", "|---|---|---|---|"]
    for name, kind, labels, text in rows:
        shown = ", ".join(f"`{label}`" for label in labels)
        head.append(f"| `{name}` | {kind} | {shown} | {text} |")
    return "\n".join(head)


def _series(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def page() -> str:
    stored = []
    for name, (family, labels, text) in STORED.items():
        kind = family(name, text).type
        stored.append((_series(name, kind), kind, labels, text))
    process = [
        (
            _series(metric._name, metric._type),
            metric._type,
            metric._labelnames,
            metric._documentation,
        )
        for metric in vars(Metrics()).values()
        if isinstance(metric, MetricWrapperBase)
    ]
    return _PAGE.format(
        cached=CACHED_S,
        walked=SIZES_CACHED_S,
        shown=ENDED_SHOWN_S / 86_400,
        stored=_table(stored),
        process=_table(process),
    )


if __name__ == "__main__":
    print(page(), end="")
