"""Operator, partner and auditor at the command line, against a real service process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from client_sdk.enrolment import load_bundle
from secagg_cli.audit.command import audit_ledger
from secagg_cli.demo.service import Service
from secagg_cli.main import app
from secagg_cli.operator.client import server_info
from secagg_cli.processes import Children
from tests.kits.cli_service import enrolled, invoke
from tests.kits.model_families import model_of
from tests.kits.tiny_training import tiny

SPEC = """
task = "heights"
algorithm = "sum"
privacy = "none"
segments = [{ name = "heights", length = 8, clip = 10.0 }]
cohort = { size_min = 4, size_max = 4, survivors_min = 3 }
budget = { releases_max = 2 }
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Children() as children:
        running = Service(tmp_path_factory.mktemp("service") / "server", children)
        running.start()
        yield running


@pytest.fixture(scope="module")
def partner(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The key file of a partner that the operator knows."""
    key = str(tmp_path_factory.mktemp("partner") / "partner.key")
    added = invoke(service, "partner", "add", "clinic", "--key-file", key)
    assert added["key"] == invoke(None, "partner", "key", key)["key"]
    return key


@pytest.fixture(scope="module")
def task(service: Service, partner: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("task") / "task.toml"
    file.write_text(SPEC)
    created = invoke(service, "task", "create", str(file))
    assert created["warnings"]
    assert [(each["unit"], each["last"]) for each in created["planned"]] == [
        ("example", None),
        ("device", None),
    ]
    assert (created["drop_outs_max"], created["corrupt_max"]) == (1, 0)
    return created["task"]


def test_a_partner_enrols_its_devices(service: Service, partner: str, tmp_path: Path) -> None:
    bundles = [load_bundle(path) for path in enrolled(service, partner, tmp_path, 2)]
    assert len({bundle.certificate.identity_key for bundle in bundles}) == 2
    public = invoke(None, "partner", "key", partner)["key"]
    assert bundles[0].certificate.partner_key.hex() == public
    assert len(enrolled(service, partner, tmp_path)) == 1  # beside the others
    assert len(list(tmp_path.glob("device-*.json"))) == 3


def test_a_task_is_listed_paused_resumed_and_exported(
    service: Service, task: str, tmp_path: Path
) -> None:
    assert [row["task"] for row in invoke(service, "task", "list")["tasks"]] == [task]
    assert invoke(service, "task", "pause", task)["state"] == "paused"
    assert invoke(service, "task", "show", task)["state"] == "paused"
    invoke(service, "task", "resume", task)
    assert invoke(service, "task", "show", task)["state"] == "open"
    file = tmp_path / "vector.safetensors"
    for _ in range(2):  # our own file is replaced
        exported = invoke(service, "task", "export", task, "--out", str(file))
    assert exported["size_bytes"] == file.stat().st_size > 0


def test_refusals_keep_the_service_s_own_reason(
    service: Service, task: str, tmp_path: Path
) -> None:
    missing = invoke(service, "task", "show", "no-such", code=1)["error"]
    assert missing["reason"] == "not-found"
    assert "'no-such'" in missing["message"]
    assert "secagg task list" in missing["remedy"]
    (tmp_path / "t.toml").write_text(SPEC)
    again = invoke(service, "task", "create", str(tmp_path / "t.toml"), code=1)
    assert again["error"]["reason"] == "task-exists"
    (tmp_path / "t.toml").write_text(SPEC.replace("survivors_min = 3", "survivors_min = 2"))
    weak = invoke(service, "task", "create", str(tmp_path / "t.toml"), code=1)
    assert weak["error"]["reason"] == "survivors-below-threshold"
    (tmp_path / "t.toml").write_text("task = ")
    bad = invoke(service, "task", "create", str(tmp_path / "t.toml"), code=1)
    assert bad["error"]["reason"] == "spec-malformed"


def test_a_wrong_token_and_a_wrong_address_are_named(service: Service, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    arguments = ["task", "list", "--token-file", str(tmp_path / "token"), "--format", "json"]
    wrong = CliRunner().invoke(app, [*arguments, "--server", service.url])
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)["error"]["reason"] == "operator-token"
    assert "operator.token" in json.loads(wrong.stdout)["error"]["remedy"]
    nobody = CliRunner().invoke(app, [*arguments, "--server", "http://127.0.0.1:1"])
    assert json.loads(nobody.stdout)["error"]["reason"] == "server-unreachable"


def test_the_ledger_verifies_from_folder_and_from_the_network(service: Service, task: str) -> None:
    from_folder = invoke(
        None, "audit", "verify", str(service.ledger_folder), "--key", service.verifier
    )
    from_network = invoke(
        None, "audit", "verify", f"{service.url}/ledger", "--key", service.verifier
    )
    assert from_folder == from_network
    assert from_folder["verified"] is True
    assert from_folder["releases"] == 0
    assert from_folder["problems"] == []


def test_an_edited_ledger_and_a_foreign_key_are_exit_code_1(
    service: Service, task: str, tmp_path: Path
) -> None:
    copy = tmp_path / "ledger"
    shutil.copytree(service.ledger_folder, copy)
    for entries in (copy / "tile" / "entries").rglob("*"):  # of one bundle, narrower forms too
        if entries.is_file() and (content := bytearray(entries.read_bytes())).count(b"heights"):
            content[content.index(b"heights")] ^= 1
            entries.write_bytes(bytes(content))
    edited = invoke(None, "audit", "verify", str(copy), "--key", service.verifier, code=1)
    assert edited["verified"] is False
    assert edited["problems"][0]["reason"] == "root-mismatch"

    name, _, rest = service.verifier.partition("+")
    foreign = invoke(
        None,
        "audit",
        "verify",
        str(service.ledger_folder),
        "--key",
        f"{name}x+{rest}",
        code=1,
    )
    assert foreign["verified"] is False


def test_the_report_is_one_self_contained_page(service: Service, task: str, tmp_path: Path) -> None:
    arguments = ("audit", "report", str(service.ledger_folder), "--key", service.verifier)
    invoke(None, *arguments, "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert task in page
    assert "Who may have seen what" in page
    wrong = invoke(None, "audit", "verify", service.url, *arguments[3:], code=2)["error"]
    assert (wrong["reason"], service.url + "/ledger" in wrong["remedy"]) == ("ledger-missing", True)
    for loaded in ("<script", "src=", "<link", "@import", "url(http"):
        assert loaded not in page
    invoke(None, *arguments, "--out", str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_bytes())["tasks"][0]["task"] == task


def test_a_model_on_disk_fills_in_the_task(service: Service, task: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        'task = "chat"\nalgorithm = "fedsgd"\n[budget]\nreleases_max = 1\n'
    )
    created = invoke(
        service, "task", "create", str(tmp_path / "t.toml"), "--model", "tiny", "--rank", "2"
    )
    assert created["task"] == "chat"
    invoke(service, "task", "export", "chat", "--out", str(tmp_path / "v"))
    with safe_open(tmp_path / "v", "numpy") as file:
        (name,) = file.keys()
        assert not file.get_tensor(name).any()


def test_a_classifier_s_adapter_is_exported_for_plain_peft(
    service: Service, task: str, tmp_path: Path
) -> None:
    model = model_of("bert")
    model.save_pretrained(tmp_path / "base")
    tiny()[1].save_pretrained(tmp_path / "base")
    (tmp_path / "t.toml").write_text(
        'task = "labels"\nalgorithm = "fedsgd"\n[budget]\nreleases_max = 1\n'
    )
    create = ("task", "create", str(tmp_path / "t.toml"), "--model", str(tmp_path / "base"))
    invoke(service, *create, "--targets", "query,value")
    export = ("task", "export", "labels", "--peft", "--out", str(tmp_path / "adapter"))
    unknown = invoke(service, *export, code=1)["error"]
    assert (unknown["reason"], "--model" in unknown["remedy"]) == ("base-model", True)
    own = ("--model", str(tmp_path / "base"))
    assert invoke(service, *export, *own)["task_type"] == "SEQ_CLS"
    (named,) = (
        audited.manifest.base_model
        for audited in audit_ledger(
            service.url + "/ledger", server_info(service.url).ledger_verifier
        ).tasks
        if audited.manifest.task == "labels"
    )
    assert named.name == "base"  # and no path of the operator's
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert loaded.peft_config["default"].task_type == "SEQ_CLS"
    other = invoke(service, *export, "--model", "tiny", code=1)
    assert other["error"]["reason"] == "base-model"
    nothing = invoke(service, "task", "export", task, "--peft", "--out", "x", code=1)
    assert nothing["error"]["reason"] == "task-without-model"


def test_a_device_refuses_what_is_weaker_than_its_policy(
    service: Service, partner: str, task: str, tmp_path: Path
) -> None:
    (bundle,) = enrolled(service, partner, tmp_path)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    joining = ["join", str(bundle), "--data", str(tmp_path / "data.jsonl"), "--task", task]
    joining += ["--state", str(tmp_path / "state")]
    assert invoke(None, *joining, code=1)["error"]["reason"] == "cohort-too-small"
    no_noise = invoke(None, *joining, "--min-cohort", "3", code=1)["error"]
    assert no_noise["reason"] == "privacy-mode"
    bundle.chmod(0o644)
    assert invoke(None, *joining, code=1)["error"]["reason"] == "secret-open"


@pytest.mark.parametrize(
    ("right", "wrong", "said", "remedy"),
    [
        (
            "survivors_min",
            "survivors_mini",
            "cohort.survivors_mini = 3: there is no such field",
            "Is cohort.survivors_min meant?",
        ),
        ("algorithm", "algoritm", "algoritm = 'sum'", "Is algorithm meant?"),
        ("cohort =", "kohort =", "kohort = {", "Is cohort meant?"),
        ("cohort =", "qqqq = 1\ncohort =", "There are task, algorithm", "task template"),
        (
            "survivors_min = 3",
            "survivors_min = 'three'",
            "a whole number is expected",
            "task template",
        ),
    ],
)
def test_a_misspelt_key_is_told_with_its_file_and_the_nearest(
    service: Service, tmp_path: Path, right: str, wrong: str, said: str, remedy: str
) -> None:
    file = tmp_path / "my-task.toml"
    assert right in SPEC
    file.write_text(SPEC.replace(right, wrong, 1))
    error = invoke(service, "task", "create", str(file), code=1)["error"]
    assert error["reason"] == "spec-malformed"
    assert str(file) in error["message"]
    assert said in error["message"]
    assert remedy in error["remedy"]


def test_bundles_are_counted_in_a_folder_by_its_whole_name(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    (tmp_path / "b" / "device-02.json").symlink_to("nowhere")
    invoke(None, "partner", "key", "p.key")
    command = ["enroll", "--partner-key", "p.key", "--out", "b", "--count", "2"]
    done = invoke(service, *command)
    assert done["count"] == 2
    assert done["bundles"] == [str(tmp_path / "b" / f"device-0{n}.json") for n in (1, 3)]
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "b" / "nowhere").exists()
    text = CliRunner().invoke(app, [*command, "--server", service.url])
    assert f"2 bundle(s) in {tmp_path / 'b'}." in text.output
