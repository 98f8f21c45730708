"""The alert rules and the Grafana dashboard of ``deploy/``, against what a real service exports."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections import namedtuple

import aiohttp
import yaml
from aiohttp.test_utils import TestServer

from aggregator import logs
from aggregator.keys import load_keys
from aggregator.settings.options import Settings
from dp.contracts import BudgetSpec
from dp.tlog.notes import verifier_key
from secagg.keys import identity_public_key
from secagg_cli.witness.service import Witness, build_witness_app
from tests.kits.boxes import Authority
from tests.kits.scraping import (
    DASHBOARD,
    RULES,
    Scrape,
    admin,
    demand_alerts,
    label_names,
    promtool,
    scrape,
)
from tests.kits.service import DEADLINE_S, Device, devices, one_hot, run, served, spec
from tests.kits.walls import connect, until
from tests.kits.witnesses import SEEDS

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
PANELS = json.loads(DASHBOARD.read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
OF_PROMETHEUS = {"instance", "job"}  # labels that a scrape adds


def test_every_expression_names_metrics_and_labels_that_the_service_exports():
    exported = label_names()
    assert len(QUERIES) > 20
    for expression in [*QUERIES, *(rule["expr"] for rule in ALERTS.values())]:
        names = set(re.findall(r"\bsecagg_\w+", expression))
        assert names, expression
        assert names <= exported.keys(), expression
        matched = re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression)
        grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
        labels = {*matched, *(part.strip() for group in grouped for part in group.split(","))}
        known = set().union(*(exported[name] for name in names))
        assert labels <= known | OF_PROMETHEUS, expression
    for rule in ALERTS.values():  # what a text names is left by its expression
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        named = set(re.findall(r"\bsecagg_\w+", rule["expr"]))
        assert shown <= set().union(*(exported[name] for name in named)) | OF_PROMETHEUS


def test_promtool_takes_the_rules_and_every_query_of_the_dashboard(tmp_path):
    promtool("check", "rules", RULES)
    queries = [
        {"record": f"panel_{number}", "expr": query.replace("$task", ".*")}
        for number, query in enumerate(QUERIES)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": queries}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


def series(before: Scrape, after: Scrape | None = None) -> list[dict[str, str]]:
    """What Prometheus has of a service an hour as in one scrape, then half an hour as in another,
    of one value a minute."""
    rows = []
    for name, labels in before.samples | (after or before).samples:
        shown = (*labels, ("instance", "a"), ("job", "b"))
        text = ",".join(f"{key}={json.dumps(value)}" for key, value in shown)
        first = before.value(name, **dict(labels))
        values = "_x61" if first is None else f"{first!r}+0x60"
        last = (after or before).value(name, **dict(labels))
        values += " _x30" if last is None else f" {last!r}+0x29"
        rows.append({"series": f"{name}{{{text}}}", "values": values})
    return rows


async def never_dealing(server, idle: Device, late: bool) -> None:
    """A cohort in which one device does not deal; it releases nothing if another is late."""
    fleet = [idle, *(Device(server, number, one_hot(number)) for number in (1, 2, 3))]
    idle.outcome, idle.after, idle.gone = None, 0, False
    fleet[1].stop_before = "header" if late else None
    await run(fleet)
    await server.until(lambda view: view["cohort"] is None)


async def test_a_service_at_rest_fires_no_alert_and_every_trouble_fires_its_own(
    tmp_path, monkeypatch
):
    data = tmp_path / "data"
    named = Settings.load(data_dir=data, operator_token="operator-token")
    log = verifier_key(named.ledger_name, identity_public_key(load_keys(named.keys_path).ledger))
    watching = Witness(tmp_path / "w.db", "w0.example", SEEDS[0], [log], time.time)
    five = spec(budget=BudgetSpec(max_epsilon=None, releases_max=5))
    async with TestServer(build_witness_app(watching)) as witness:
        caps = {"connections_max": 20, "connections_per_address": 20, "behind_proxy": True}
        urls = {watching.verifier: str(witness.make_url(""))}
        async with (
            served(data, five, witnesses=urls, witness_retry_s=0.0, **caps) as server,
            admin(server) as url,
        ):
            await run(devices(server, 4))
            await server.until(lambda view: view["cohort"] is None)
            healthy = await scrape(url)
            await witness.close()
            idle = Device(server, 0, one_hot(0), stop_before="deals")
            for _ in range(3):
                await never_dealing(server, idle, late=True)
            connections = await in_trouble(server, monkeypatch)
            troubled = await scrape(url)
            async with aiohttp.ClientSession() as http, http.get(url) as answer:
                page = await answer.text()
            assert len(connections) > 16
            monkeypatch.undo()
    for said in ("is stuck in sharing", "Witness w0.example lacks", "of the last 3 cohorts of"):
        assert said in page
    demand_alerts(tmp_path, series(healthy), "90m", set())
    away, other = "SecaggAway", [up("1x90"), info("1x90")]
    demand_alerts(tmp_path, [*series(healthy), *other], "90m", set())
    gone = [up("1x60 0x30"), info("1x60")]
    demand_alerts(tmp_path, [*series(healthy), *gone], "73m", {"SecaggReplicaAway"})
    others = ALERTS.keys() - {away, "SecaggCertificate"}
    demand_alerts(tmp_path, [*series(healthy, troubled), *gone], "73m", others)
    demand_alerts(tmp_path, [], "73m", {away})


def up(values: str) -> dict[str, str]:
    """What Prometheus itself says of another replica's scrapes."""
    return {"series": 'up{instance="c",job="b"}', "values": values}


def info(values: str) -> dict[str, str]:
    return {"series": 'secagg_build_info{instance="c",job="b",version="1"}', "values": values}


async def test_a_certificate_that_ends_or_is_not_renewed_fires_its_alert(tmp_path):
    certificate, key = Authority(tmp_path).pair(tmp_path / "service.pem", "127.0.0.1", days=30)
    files = {"tls_certificate": certificate, "tls_key": key}
    async with served(tmp_path / "data", **files) as server, admin(server) as url:
        healthy = await scrape(url)
        server.ahead_s = 24 * 86_400
        ending = await scrape(url)
        server.ahead_s = 0.0
        certificate.write_text("half a file")
        server.service.tls.look()
        broken = await scrape(url)
    demand_alerts(tmp_path, series(healthy), "90m", set())
    for troubled in (ending, broken):
        demand_alerts(tmp_path, series(healthy, troubled), "73m", {"SecaggCertificate"})


async def in_trouble(server, monkeypatch) -> list[object]:
    """A cohort that cannot commit, polls that fail, a full disk, as many connections as there may
    be (returned), and a day without a release, on a replica that stops."""
    for device in (stuck := devices(server, 4)):
        device.stop_before = "deals"
    await asyncio.gather(*(device.run() for device in stuck))
    await server.until(lambda view: view["cohort"] is not None)

    async def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("aggregator.store.cohorts.advance", full)
    server.ahead_s += 86_400 + DEADLINE_S
    await server.until(lambda view: view["cohort"]["stuck"])
    monkeypatch.setattr("aggregator.store.tasks.versions_and_states", full)
    failures = server.service.core.metrics.poll_failures
    await until(lambda: failures._value.get() > 3)
    logs.failures.inc()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 95, 5))
    held = [await connect(server, "127.0.0.2") for _ in range(18)]  # the proxy's address
    await until(lambda: server.connections.by_address.total() >= 18)
    server.service.drain()
    return held
