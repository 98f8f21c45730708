"""``secagg join``: whose word decides which base model is fetched, and how large it is."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import msgspec
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from typer.testing import CliRunner

import client_sdk
import secagg_cli.models.cache
from client_sdk.contribution import TrainingJob
from client_sdk.enrolment import create_bundle, new_partner_key, save_bundle
from client_sdk.training.dataset import Cut, LeftOut, unread
from client_sdk.training.lora import write_peft_folder
from client_sdk.training.row_files import RowFile, read_file
from secagg.errors import ConfigurationError
from secagg.lora.forms import vector_length
from secagg_cli.exit_codes import EXIT_INCOMPLETE
from secagg_cli.join.policy import in_options
from secagg_cli.join.sentences import sentence
from secagg_cli.join.trainer import LazyTrainer
from secagg_cli.join.training_data import LISTED_MAX
from secagg_cli.main import app
from secagg_cli.models.cache import ensure_model
from secagg_cli.output import CommandError
from tests.kits.commands import invoke
from tests.kits.device import PARTNER, TASK_KEY, account_in, fedsgd_spec, make_manifest, sum_spec
from tests.kits.tiny_training import job, tiny, tiny_task

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
PLACE = "line 2 of data.jsonl"
_Usage = namedtuple("_Usage", "total used free")


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[client_sdk.PrivacyPolicy]:
    """The policies that join hands to its client, which then stops."""
    seen: list[client_sdk.PrivacyPolicy] = []

    def from_bundle(*_: object, policy: client_sdk.PrivacyPolicy, **__: object) -> None:
        seen.append(policy)
        raise CommandError("stopped-here", "The test has seen enough.")

    monkeypatch.setattr(client_sdk.Client, "from_bundle", from_bundle)
    return seen


def policy_of(
    policies: list[client_sdk.PrivacyPolicy], folder: Path, *options: str
) -> client_sdk.PrivacyPolicy:
    data = folder / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    words = ("join", str(folder / "b.json"), "--data", str(data), "--task", "t", *options)
    assert invoke(*words, code=1)["error"]["reason"] == "stopped-here"
    return policies[-1]


def test_join_s_own_defaults_are_the_default_policy_without_any_model(
    policies: list[client_sdk.PrivacyPolicy], tmp_path: Path
) -> None:
    expected = replace(client_sdk.PrivacyPolicy(), allowed_models=frozenset())
    assert policy_of(policies, tmp_path) == expected


def test_join_s_options_are_words_for_the_policy(
    policies: list[client_sdk.PrivacyPolicy], tmp_path: Path
) -> None:
    assert policy_of(policies, tmp_path, "--model", "x").allowed_models is None
    named = policy_of(policies, tmp_path, "--allow-model", "a/b", "--allow-model", "tiny")
    assert named.allowed_models == {"a/b", "tiny"}
    both = policy_of(policies, tmp_path, "--allow-model", "a/b", "--model", "x")
    assert both.allowed_models == {"a/b"}
    assert policy_of(policies, tmp_path, "--min-corrupt", "0").min_corrupt == 0
    assert policy_of(policies, tmp_path).partner_keys is None
    own = new_partner_key()
    save_bundle(
        tmp_path / "b.json", create_bundle("http://x", TASK_KEY, VERIFIER, own.seed, 4 * 10**9)
    )
    words = ("--trust-partner", "ab" * 32, "--trust-partner", "cd" * 32)
    trusted = policy_of(policies, tmp_path, *words).partner_keys
    assert trusted == {own.key, b"\xab" * 32, b"\xcd" * 32}
    larger = policy_of(policies, tmp_path, "--max-download-mb", "1024")
    assert larger.max_download_bytes == 1 << 30


def test_limits_per_period_and_of_memory_are_words_for_the_policy(
    policies: list[client_sdk.PrivacyPolicy], tmp_path: Path
) -> None:
    assert policy_of(policies, tmp_path, "--period-days", "7").per_period is None
    words = ("--period-days", "7", "--period-mb", "50", "--period-minutes", "30")
    limits = policy_of(policies, tmp_path, *words, "--period-epsilon", "0.5").per_period
    assert limits == client_sdk.PeriodLimits(7 * 86_400.0, 50 << 20, 1_800.0, 0.5)
    assert policy_of(policies, tmp_path, "--max-memory-mb", "900").max_memory_bytes == 900 << 20


@pytest.mark.parametrize(
    ("reason", "option"),
    [("bytes-of-period", "--period-mb"), ("training-of-period", "--period-minutes")],
)
def test_a_refusal_of_a_period_names_its_option(reason: str, option: str) -> None:
    refusal = in_options(client_sdk.PolicyRefusal(reason, "Too much.", remedy="Raise max_bytes."))
    assert option in str(refusal.remedy)


def test_a_resumed_session_names_its_task_and_how_to_end_it(tmp_path: Path) -> None:
    event = client_sdk.Event("resumed", "stats", "ab", {"phase": "advertised"})
    said = sentence(event, tmp_path)
    assert "task stats is finished first" in said
    assert f"secagg session reset {tmp_path}" in said


@pytest.mark.parametrize(
    "named", ["owner/model", "tiny", "/etc", "../model", "https://host/model", "tiny "]
)
def test_a_name_that_nobody_allowed_is_not_even_looked_up(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        secagg_cli.models.cache, "ensure_model", lambda name, **_: asked.append(name)
    )
    manifest = make_manifest(fedsgd_spec(), VERIFIER)
    base = msgspec.structs.replace(manifest.base_model, name=named)
    work: TrainingJob = job(msgspec.structs.replace(manifest, base_model=base))
    for allowed in (frozenset[str](), frozenset({"owner/other", "smollm2"})):
        with pytest.raises(client_sdk.TaskRefusal) as caught:
            LazyTrainer([("a", "b")], None, allowed).contribute(work)
        assert caught.value.reason == "model-not-allowed"
    assert asked == []


def test_a_model_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> Path:
        raise ConfigurationError("model-missing", "There is no such model.", remedy="Look again.")

    monkeypatch.setattr(secagg_cli.models.cache, "ensure_model", missing)
    work: TrainingJob = job(make_manifest(fedsgd_spec(), VERIFIER))
    with pytest.raises(client_sdk.TaskRefusal, match="model-missing") as caught:
        LazyTrainer([("a", "b")], "x").contribute(work)
    assert caught.value.remedy == "Look again."


def test_training_that_failed_is_told_though_the_release_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise alone was given, and charged: the command must not look as if it had trained."""
    failed = "The contributor failed: MemoryError: too much. [contribution-failed]"
    result = client_sdk.RunResult(epsilon=1.0, failed=(failed,))
    client = SimpleNamespace(run=lambda *_, **__: result, state_dir=tmp_path)
    monkeypatch.setattr(client_sdk.Client, "from_bundle", lambda *_, **__: client)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    words = ("join", str(tmp_path / "b.json"), "--data", str(data), "--task", "t")
    told = invoke(*words, code=EXIT_INCOMPLETE)
    assert told["failed"] == [failed]
    assert (told["left_out"], told["releases"]) == (0, [])
    trained = client_sdk.Event("trained", "t", None, {"version": 0, "failed": None})
    assert sentence(trained, tmp_path) == "trained: version 0"


def test_a_failure_is_told_with_its_row_and_gives_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing but the failure says that nothing was learnt."""
    failure = client_sdk.TrainingFailure(
        reason="examples-failed", message="Each failed.", remedy="Mend it.", row=0, given="zeros"
    )
    result = client_sdk.RunResult(failures=(failure,), examples=1)
    done = joined(tmp_path, monkeypatch, '{"prompt": "a", "answer": "b"}\n', result)
    assert done.exit_code == EXIT_INCOMPLETE
    (told,) = json.loads(done.stdout)["failures"]
    assert (told["reason"], told["row"], told["tensor"]) == ("examples-failed", 0, None)
    assert "training failed: Each failed. [examples-failed] Mend it." in done.stderr


def test_a_model_that_cannot_be_loaded_is_refused_and_not_hidden_as_zeros(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the data: memory that runs out while it is loaded, say."""

    def fails(*_: object, **__: object) -> Path:
        raise MemoryError("too large")

    monkeypatch.setattr(secagg_cli.models.cache, "ensure_model", fails)
    work: TrainingJob = job(make_manifest(fedsgd_spec(), VERIFIER))
    with pytest.raises(client_sdk.TaskRefusal, match="MemoryError") as caught:
        LazyTrainer([("a", "b")], "x").contribute(work)
    assert caught.value.reason == "model-failed"


def test_examples_that_counted_as_zero_are_told_in_text_json_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = LeftOut(1, "example-cut", "No token counts.")
    results = [client_sdk.RunResult(left_out=(cut,)), client_sdk.RunResult()]
    client = SimpleNamespace(run=lambda *_, **__: results.pop(0), state_dir=tmp_path)
    monkeypatch.setattr(client_sdk.Client, "from_bundle", lambda *_, **__: client)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n' * 2)
    words = ("join", str(tmp_path / "b.json"), "--data", str(data), "--task", "t")
    done = CliRunner().invoke(app, [*words, "--format", "json"])
    assert done.exit_code == EXIT_INCOMPLETE == 4
    told = json.loads(done.stdout)
    assert (told["left_out"], told["left_out_reasons"]) == (1, {"example-cut": 1})
    assert "1 of 2 examples counted as zero. Line 2 of data.jsonl: No token counts." in done.stderr
    (listed,) = told["left_out_examples"]
    assert (listed["line"], listed["index"], listed["place"]) == (2, 1, PLACE)
    assert (listed["reason"], listed["sentence"]) == ("example-cut", "No token counts.")
    assert invoke(*words)["left_out"] == 0


def joined(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: str, result: client_sdk.RunResult
) -> Any:
    """What ``join`` prints, and how it ends, where a run comes to ``result``."""
    client = SimpleNamespace(run=lambda *_, **__: result, state_dir=folder)
    monkeypatch.setattr(client_sdk.Client, "from_bundle", lambda *_, **__: client)
    path = folder / "data.jsonl"
    path.write_text(data)
    words = ("join", str(folder / "b.json"), "--data", str(path), "--task", "t")
    return CliRunner().invoke(app, [*words, "--format", "json"])


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("data", ["", "[]", "\n\n", "nothing\n", '{"prompt": "q"}\n5\n'])
def test_a_file_of_which_nothing_can_be_used_ends_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, trained: bool
) -> None:
    """Also where no job came that would have told."""
    rows = read_rows_of(tmp_path, data)
    left_out = unread(rows)
    result = client_sdk.RunResult(left_out=left_out, examples=len(rows))
    done = joined(tmp_path, monkeypatch, data, result if trained else client_sdk.RunResult())
    told = json.loads(done.stdout)
    assert (told["examples"], told["used"]) == (len(rows), 0)
    assert done.exit_code == EXIT_INCOMPLETE


def read_rows_of(folder: Path, data: str) -> RowFile:
    path = folder / "rows.jsonl"
    path.write_text(data)
    return read_file(path)


def test_examples_that_are_cut_are_told_and_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tuple(Cut(index, 100 + index, 64) for index in range(LISTED_MAX + 2))
    data = '{"prompt": "a", "answer": "b"}\n' * (LISTED_MAX + 2)
    result = client_sdk.RunResult(cut=cut, examples=len(cut))
    done = joined(tmp_path, monkeypatch, data, result)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["examples"], told["used"], told["cut"]) == (1002, 1002, 1002)
    assert len(told["cut_examples"]) == LISTED_MAX
    assert told["cut_examples"][1] == {
        "line": 2,
        "index": 1,
        "tokens": 101,
        "limit": 64,
        "place": PLACE,
    }
    assert "1002 of 1002 examples counted, but not whole. Line 1 of data.jsonl: " in done.stderr
    assert "only the first 64 of 101 tokens are used" in done.stderr


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"min_cohort": 99}, "--min-cohort"),
        ({"min_corrupt": 99}, "--min-corrupt"),
        ({"max_epsilon": 1e-3}, "--max-epsilon, --unit"),
        ({"max_total_epsilon": 1e-3}, "--max-total-epsilon, --unit"),
        ({"partner_keys": frozenset((b"q" * 32,))}, "--trust-partner"),
        ({"max_download_bytes": 1}, "--max-download-mb"),
        ({"require": "local"}, "--without-noise"),
        ({"max_delta": 0.0}, None),
    ],
)
def test_a_refusal_names_the_option_of_this_command(
    tmp_path: Path, changes: dict[str, Any], option: str | None
) -> None:
    policy = replace(client_sdk.PrivacyPolicy(min_cohort=2, min_corrupt=0), **changes)
    manifest = make_manifest(sum_spec(), VERIFIER)
    with pytest.raises(client_sdk.PolicyRefusal) as caught:
        policy.admit(manifest, own_partner=PARTNER.key, account=account_in(tmp_path))
    remedy = str(in_options(caught.value).remedy)
    assert remedy.endswith(f"Here that is {option}." if option else "in this app's policy.")


class Hub:
    """A hub that lists files, and remembers what was fetched of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, error: Any = None) -> None:
        self.fetched: list[tuple[str, dict[str, Any]]] = []
        self.said: list[tuple[str, float | None]] = []
        files = [("config.json", 700), ("model.safetensors", 2_000_000_000), ("a.bin", 10**12)]
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files]

        def model_info(_self: object, name: str, *, files_metadata: bool) -> Any:
            assert files_metadata
            if error is not None:
                raise error
            return SimpleNamespace(sha="abc", siblings=siblings)

        def snapshot_download(name: str, **words: Any) -> str:
            self.fetched.append((name, words))
            return str(folder)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    def tell(self, what: str, share: float | None) -> None:
        assert not self.fetched or share == 1.0
        self.said.append((what, share))


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = _Usage(1 << 50, 0, free)
    monkeypatch.setattr("secagg_cli.models.cache.shutil.disk_usage", lambda _path: usage)


def test_the_size_is_said_before_a_model_is_fetched_and_that_revision_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, tmp_path)
    room(monkeypatch, 1 << 40)
    assert ensure_model("owner/model", progress=hub.tell) == tmp_path
    assert hub.said[0] == ("Fetching owner/model, 2,000 MB", None)
    assert [(name, words["revision"]) for name, words in hub.fetched] == [("owner/model", "abc")]


def test_a_model_without_room_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, tmp_path)
    room(monkeypatch, 2_000_000_000)
    with pytest.raises(ConfigurationError) as caught:
        ensure_model("owner/model", progress=hub.tell)
    assert caught.value.reason == "model-disk"
    assert hub.fetched == []


def test_without_a_network_an_earlier_copy_serves_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, tmp_path, ConnectionError("no route"))
    assert ensure_model("owner/model", progress=hub.tell) == tmp_path
    assert [words["local_files_only"] for _, words in hub.fetched] == [True]
    refusing = Hub(
        monkeypatch,
        tmp_path,
        HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None)),
    )
    with pytest.raises(ConfigurationError, match="model-download"):
        ensure_model("owner/model", progress=refusing.tell)
    assert refusing.fetched == []


@pytest.mark.parametrize("name", ["a/b\n", "a/../b", "-x/y", "a b/c", "x/" + "y" * 97, "/a", "a/"])
def test_crafted_names_are_no_hub_ids(name: str) -> None:
    with pytest.raises(ConfigurationError, match="model-unknown"):
        ensure_model(name)


@pytest.mark.parametrize(
    ("words", "written"),
    [({}, None), ({"base_name": "/models/mine"}, "/models/mine")],
)
def test_an_exported_adapter_points_no_loader_at_a_name_that_the_manifest_made_up(
    words: dict[str, Any], written: str | None, tmp_path: Path
) -> None:
    manifest = tiny_task("none")
    crafted = msgspec.structs.replace(manifest.base_model, name="evil/model")
    manifest = msgspec.structs.replace(manifest, base_model=crafted)
    vector = np.zeros(vector_length(manifest.adapter), np.float32)
    folder = write_peft_folder(tmp_path / "a", manifest, vector, **words)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == written
    model, _ = tiny()
    folder = write_peft_folder(tmp_path / "b", manifest, vector, base=model)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == (model.name_or_path or None)
    assert "evil" not in json.dumps(config)
