"""Bytes that one device sends and receives for one release, by form of the adapter and cohort.

    python -m benchmarks.communication                       # minutes of one core
    python -m benchmarks.communication --sizes 6,60 --models tiny

Vectors, manifests, the service's steps, model files and deltas are the real ones; sums are noise of
the task's own size. Messages are those of real cohorts in memory, without drop-outs. The heads of
HTTP, most of them the device's token, and TLS are not in it; offers and the ledger are not either.
No network is used and no model is loaded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.signing
import numpy as np

from aggregator.algorithms import StepInput, server_step
from aggregator.algorithms.rounding import rounded
from aggregator.store import deltas, models
from aggregator.store.blobs import BlobStore
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec, build_manifest
from dp.tlog.notes import verifier_key
from dp.transfer_sizes import upload_size
from secagg.graph.degrees import plan_rules
from secagg.lora import forms
from secagg.manifest import Adapter, AdapterKind, BaseModel, Manifest, TensorShape
from secagg.message_sizes import DOWN, UP, message_sizes
from secagg.simulation import Hooks, make_devices, make_task, run_cohort
from secagg_cli.models.presets import adapter_for, task_terms

# Rows and columns of the linear layers that presets adapt.
LAYERS = {
    "tiny": ((64, 64), (64, 128)) * 2,  # o_proj, down_proj
    "smollm2": ((576, 576), (192, 576)) * 30,  # q_proj, v_proj
}
RELEASES = 10
_KEY = bytes(32)
_ROWS: tuple[tuple[str, AdapterKind, str, str], ...] = (
    ("ffa-lora, noise in the sum", "ffa-lora", "fedsgd", "distributed"),
    ("lora, noise in the sum", "lora", "fedsgd", "distributed"),
    ("rolora, noise in the sum", "rolora", "fedsgd", "distributed"),
    ("fedsvd, noise in the sum", "fedsvd", "fedsgd", "distributed"),
    ("zeroth order, noise in the sum", "ffa-lora", "zeroth-order", "distributed"),
    ("ffa-lora, noise on each device", "ffa-lora", "fedavg", "local"),
    ("ffa-lora, no noise", "ffa-lora", "fedavg", "none"),
    ("product, no noise", "product", "fedavg", "none"),
)


def adapter_of(model: str, kind: AdapterKind, clients: int) -> Adapter:
    """The preset's adapter over layers of the model's shape."""
    preset = adapter_for(model, kind, clients)
    a, b = (
        tuple(
            TensorShape(
                name=f"layer.{number}.lora_{factor}.weight",
                rows=preset.rank if factor == "A" else rows,
                columns=columns if factor == "A" else preset.rank,
            )
            for number, (rows, columns) in enumerate(LAYERS[model])
        )
        for factor in "AB"
    )
    only_b = kind in ("ffa-lora", "fedsvd")
    pairs = tuple(shape for pair in zip(a, b, strict=True) for shape in pair)
    return Adapter(
        kind=kind,
        rank=preset.rank,
        alpha=preset.alpha,
        target_modules=preset.target_modules,
        seed=_KEY,
        trainable=b if only_b else pairs,
        frozen=a if only_b else (),
        sketch=preset.sketch,
    )


def manifest_of(
    model: str, kind: AdapterKind, algorithm: str, privacy: Any, clients: int
) -> Manifest:
    """The demo's task of a model and form, for cohorts of ``clients``."""
    survivors = max(2, clients * 5 // 6)
    terms = task_terms(model, privacy, algorithm, min(clients, 6), kind)
    limits = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=RELEASES)
    key = bytes(nacl.signing.SigningKey(_KEY).verify_key)
    return build_manifest(
        TaskSpec(
            task="bytes",
            base_model=BaseModel(name=model, fingerprint=_KEY),
            adapter=adapter_of(model, kind, min(clients, 6)),
            cohort=CohortSpec(size_min=clients, size_max=clients, survivors_min=survivors),
            **terms | {"budget": limits},
        ),
        created_at=1_700_000_000,
        task_key=key,
        ledger_verifier=verifier_key("ledger", key),
        partner_keys=[key],
    )


@dataclass(frozen=True)
class Downloads:
    """Bytes of the present model after ``RELEASES`` releases: whole, and as deltas."""

    whole: int
    from_previous: int
    from_nothing: int


def downloads(manifest: Manifest, folder: Path) -> Downloads:
    """Real steps on sums of noise, as the service takes, stores and tells them."""
    blobs, coins = BlobStore(folder), np.random.default_rng(0)
    stored = [models.initial(blobs, manifest)]
    vector = models.load(blobs, stored[0].digest)
    state: dict[str, Any] = {}
    for version in range(RELEASES):
        sums = {
            segment.name: coins.normal(0, segment.clip / segment.length**0.5, segment.length)
            for segment in manifest.segments
        }
        sums |= {name: np.ones(1) for name in ("weight", "loss") if name in sums}
        given = StepInput(manifest, vector, state, sums, version, 6, 6)
        step = server_step(given)
        vector, state = rounded(manifest, vector, step.vector), step.optimiser
        stored.append(models.store(blobs, manifest.task, version + 1, vector, state))
    last, before = stored[-1].digest.hex(), stored[-2].digest.hex()
    sizes = []
    for base in (before, deltas.NOTHING):
        made = deltas.make(blobs, last, base)
        path = blobs.path(deltas.name_of(last, base))
        sizes.append(path.stat().st_size if made else stored[-1].size_bytes)
    return Downloads(stored[-1].size_bytes, *sizes)


@dataclass(frozen=True)
class Messages:
    """Mean bytes of a device's messages in one cohort, without the vector; and their bounds."""

    up: float
    down: float
    up_max: int
    down_max: int
    neighbours: int


def messages(clients: int) -> Messages:
    """A real cohort in memory; on a sparse graph beyond 128 devices."""
    corrupt = max(1, clients // 10)
    survivors = max(2, clients * 5 // 6)
    degree, threshold = plan_rules(clients, clients, survivors, corrupt)
    task = make_task(
        clients,
        64,
        survivors_min=survivors,
        corrupt_max=corrupt,
        degree=degree,
        threshold=threshold,
    )
    carried = {"up": 0, "down": 0}

    def counted(way: str) -> Any:
        def note(number: int, message: bytes) -> Sequence[bytes]:
            carried[way] += len(message)
            return (message,)

        return note

    vectors = [np.zeros(64, np.int64)] * clients
    devices = make_devices(task, vectors)
    carried["up"] = sum(len(device.advert) for device in devices)
    hooks = Hooks(upward=counted("up"), downward=counted("down"))
    result = run_cohort(task, vectors, hooks=hooks, devices=devices)
    if result.total is None:
        raise SystemExit(f"the cohort of {clients} ended without a sum")
    bounds = message_sizes(task.manifest)
    return Messages(
        up=carried["up"] / clients,
        down=carried["down"] / clients,
        up_max=sum(bounds[kind] for kind in UP),
        down_max=sum(bounds[kind] for kind in DOWN),
        neighbours=degree or clients - 1,
    )


def plain_bytes(model: str) -> int:
    """Both factors of the adapter in float32: what is sent each way without any of this."""
    rank = adapter_for(model, "lora", 6).rank
    return 4 * rank * sum(rows + columns for rows, columns in LAYERS[model])


def forms_table(model: str, clients: int) -> list[str]:
    plain = plain_bytes(model)
    rows = [
        f"Plain adapter in float32: {plain:,} bytes up, as many down.",
        "",
        "| form | numbers sent | ring bits | up | numbers stored | down, whole | down, from the "
        "version before | bits a number | down, from nothing | up and down, of plain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, kind, algorithm, privacy in _ROWS:
        manifest = manifest_of(model, kind, algorithm, privacy, clients)
        assert manifest.adapter is not None
        with tempfile.TemporaryDirectory() as folder:
            down = downloads(manifest, Path(folder))
        up, length = upload_size(manifest), forms.vector_length(manifest.adapter)
        share = (up + down.from_previous) / (2 * plain)
        rows.append(
            f"| {name} | {manifest.data_length:,} | {manifest.encoding.ring_bits} | {up:,} "
            f"| {length:,} | {down.whole:,} | {down.from_previous:,} "
            f"| {8 * down.from_previous / length:.1f} | {down.from_nothing:,} | {share:.2f} |"
        )
    return rows


def messages_table(sizes: Sequence[int]) -> list[str]:
    rows = [
        "| devices | neighbours | messages up | at most | messages down | at most |",
        "|---|---|---|---|---|---|",
    ]
    for clients in sizes:
        found = messages(clients)
        rows.append(
            f"| {clients:,} | {found.neighbours} | {found.up:,.0f} | {found.up_max:,} "
            f"| {found.down:,.0f} | {found.down_max:,} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="tiny,smollm2", help="of tiny and smollm2; empty: none")
    parser.add_argument("--sizes", default="6,60,200", help="devices of a cohort, comma between")
    args = parser.parse_args()
    for model in filter(None, args.models.split(",")):
        print(f"\n{model}\n", *forms_table(model, 6), sep="\n", flush=True)
    sizes = [int(size) for size in args.sizes.split(",") if size]
    print("\nmessages\n", *messages_table(sizes), sep="\n")


if __name__ == "__main__":
    main()
