"""Scrapes a service's admin port, as Prometheus does, and asks promtool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from aggregator import measures
from aggregator.http.app import build_admin_app
from aggregator.metrics import STORED, Metrics
from tests.kits.service import Served

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "secagg.json"
_MOVING = ("secagg_disk_", "secagg_cohort_phase_age", "secagg_release_age")
_MOVING += ("secagg_database_bytes", "secagg_blob_bytes")


@asynccontextmanager
async def admin(server: Served) -> AsyncIterator[str]:
    runner = web.AppRunner(build_admin_app(server.service))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@dataclass(frozen=True)
class Scrape:
    """``samples``: (name of the series, its labels) -> value."""

    text: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def state(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """What every replica of a service must show alike, also after a restart."""
        return {
            key: value
            for key, value in self.samples.items()
            if key[0].removesuffix("_total") in STORED and not key[0].startswith(_MOVING)
        }

    def of(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {labels: value for (found, labels), value in self.samples.items() if found == name}


async def scrape(url: str) -> Scrape:
    """What a scrape of now says, whatever was read just before."""
    async with aiohttp.ClientSession() as http:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measures, "CACHED_S", 0.0)
            async with http.get(f"{url}/metrics") as answer:
                assert answer.status == 200
                text = await answer.text()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Scrape(text, samples)


def label_names() -> dict[str, set[str]]:
    """Series that the service exports, ``_bucket`` and the like included -> their labels."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels, _) in STORED.items():
        found[name + ("_total" if kind.__name__.startswith("Counter") else "")] = set(labels)
    for metric in vars(Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        labels = set(metric._labelnames)
        name, kind = metric._name, metric._type
        if kind == "histogram":
            found |= {f"{name}_{end}": labels for end in ("sum", "count")}
            found[f"{name}_bucket"] = labels | {"le"}
        else:
            found[name + ("_total" if kind == "counter" else "")] = labels
    return found


def promtool(*arguments: str | Path, sent: str | None = None) -> str:
    """Run promtool; what it prints. Without it a test is skipped, unless PROMTOOL=required."""
    path = shutil.which("promtool")
    if path is None:
        how = "promtool is not installed; Debian's package prometheus has it"
        if os.environ.get("PROMTOOL") == "required":
            pytest.fail(how)
        pytest.skip(how)
    done = subprocess.run(
        [path, *map(str, arguments)], input=sent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def demand_alerts(folder: Path, series: list[dict[str, str]], at: str, expected: set[str]) -> None:
    """The rules of ``deploy`` fire these alerts and no others ``at`` a time of the series, which
    have one value a minute."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    asked = "max by (alertname) (ALERTS{alertstate='firing'})"
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": asked, "eval_time": at, "exp_samples": samples}],
    }
    path = folder / "rules-test.yml"
    whole = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    path.write_text(json.dumps(whole))
    promtool("test", "rules", path)
