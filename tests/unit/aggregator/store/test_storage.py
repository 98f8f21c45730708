"""Blobs, keys, models, settings: what lies on disk, and who may read it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from aggregator.keys import load_keys, private_text
from aggregator.settings.options import Settings
from aggregator.signals import Signals
from aggregator.store import migrations, models
from aggregator.store.blobs import BlobMissing, BlobStore
from aggregator.store.database import Database
from aggregator.store.schema import partners
from secagg.errors import ConfigurationError
from tests.kits.sealed import CELLS


def test_a_blob_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    store = BlobStore(tmp_path)
    store.put("a/b", b"old")

    def crash(*_):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="power cut"):
            store.put("a/b", b"new and longer")
    assert store.get("a/b") == b"old"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b"]


def test_a_blob_named_by_its_digest_is_written_once(tmp_path):
    store = BlobStore(tmp_path)
    digest = store.put_digest("x", b"data")
    assert digest == hashlib.sha256(b"data").digest()
    before = store.path(f"x/{digest.hex()}").stat().st_mtime_ns
    assert store.put_digest("x", b"data") == digest
    assert store.path(f"x/{digest.hex()}").stat().st_mtime_ns == before


def test_a_missing_blob_says_what_to_do(tmp_path):
    with pytest.raises(BlobMissing) as missing:
        BlobStore(tmp_path).get("models/none")
    assert missing.value.reason == "blob-missing"
    assert missing.value.expected == "models/none"
    assert missing.value.remedy


def test_keys_are_made_once_and_stay(tmp_path):
    first, second = load_keys(tmp_path / "keys"), load_keys(tmp_path / "keys")
    assert first.task_public == second.task_public
    assert first.ledger.reveal() == second.ledger.reveal() != first.task.reveal()


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_keys(tmp_path)
    (tmp_path / "task.key").chmod(0o644)
    with pytest.raises(ConfigurationError) as refused:
        load_keys(tmp_path)
    assert refused.value.reason == "key-permissions"
    assert "chmod 600" in refused.value.remedy


def test_of_two_replicas_that_make_a_key_at_once_one_wins(tmp_path):
    path = tmp_path / "token"

    def make():
        if not path.exists():  # the other replica comes in between
            private_text(path, lambda: "theirs")
        return "ours"

    assert private_text(path, make) == "theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["token"]


def test_a_model_opens_with_plain_safetensors_and_versions_differ(tmp_path):
    blobs = BlobStore(tmp_path)
    vector = np.array([1.5, -2.0], np.float32)
    one, two = (models.store(blobs, "task", version, vector) for version in (1, 2))
    assert one.digest != two.digest
    path = blobs.path(f"models/{one.digest.hex()}")
    assert path.stat().st_size == one.size_bytes
    assert safetensors.numpy.load_file(path)["vector"].tolist() == [1.5, -2.0]
    assert models.load(blobs, two.digest).tolist() == [1.5, -2.0]


def test_an_equal_model_has_an_equal_file(tmp_path):
    """The library writes metadata in random order."""
    vector, state = np.array([1.5, -2.0], np.float32), {"clip": np.array([0.5])}
    stored = {models.store(BlobStore(tmp_path), "task é", 1, vector, state) for _ in range(20)}
    assert len(stored) == 1
    (one,) = stored
    with safetensors.safe_open(tmp_path / "models" / one.digest.hex(), "numpy") as file:
        assert file.metadata() == {"task": "task é", "version": "1"}
        assert file.get_tensor("clip").tolist() == [0.5]
        assert file.get_tensor("vector").tolist() == [1.5, -2.0]


def test_the_environment_overrides_the_file_and_arguments_override_both(tmp_path, monkeypatch):
    file = tmp_path / "secagg.toml"
    file.write_text('host = "file"\nport = 1\nadmin_port = 1\npoll_s = 2.5\n')
    monkeypatch.setenv("SECAGG_PORT", "2")
    monkeypatch.setenv("SECAGG_ADMIN_PORT", "2")
    settings = Settings.load(file, admin_port=3)
    assert (settings.host, settings.port, settings.admin_port) == ("file", 2, 3)
    assert settings.poll_s == 2.5


def test_database_urls_get_an_asynchronous_driver(tmp_path):
    default = Settings(data_dir=tmp_path)
    assert str(default.database) == f"sqlite+aiosqlite:///{tmp_path}/secagg.db"
    for url in ("postgres://h/d", "postgresql://h/d", "postgresql+asyncpg://h/d"):
        assert str(Settings(database_url=url).database) == "postgresql+asyncpg://h/d"


def test_the_token_does_not_show_in_the_settings(tmp_path):
    assert "hunter23" not in repr(Settings(operator_token="hunter23", data_dir=tmp_path))


async def test_a_single_query_sees_the_last_commit_and_cannot_write(tmp_path):
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", CELLS)
    await database.migrate()
    query = sa.select(partners.c.name).order_by(partners.c.name)
    assert await database.rows(query) == []
    for number, name in enumerate(["a", "b"]):
        async with database.write() as connection:
            row = {"name": name, "partner_key": bytes([number]).hex() * 32, "added_at": 0.0}
            await connection.execute(sa.insert(partners).values(row))
        assert [row.name for row in await database.rows(query)] == ["a", "b"][: number + 1]
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        await database.rows(sa.delete(partners))
    await database.close()


async def test_a_signal_wakes_its_listeners_and_is_forgotten():
    signals = Signals()
    with signals.listen("a") as one, signals.listen("a") as two, signals.listen("b") as other:
        signals.notify("a", "nobody")
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
        signals.notify_all()
        assert other.is_set()
    assert signals._listeners == {}


def test_migrations_are_one_line():
    folder = Path(migrations.__file__).parent
    assert len(ScriptDirectory(str(folder)).get_heads()) == 1
