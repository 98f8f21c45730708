"""Cases with noise in the masked sum."""

from __future__ import annotations

from typing import Any

from dp.contracts import SegmentSpec

DEVICE = {"device_noise_multiplier": 2.0, "update_clip": 16.0}
FEDSGD = {"privacy": "distributed", "clip": 16.0, "examples_max": 16, "sampling_rate": 1.0}
TASKS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("fedavg", {}, DEVICE),
    ("fedprox", {"proximal_mu": 0.5}, DEVICE),
    *[(name, {}, DEVICE) for name in ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedbuff")],
    ("fednova", {"local_epochs": 1, "local_steps": 4, "batch_size": 3}, DEVICE),
    ("fedsgd", {}, FEDSGD),
]

SLOPES = {"local_steps": 1, "directions": 48, "batch_size": 16}
SHORT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("zeroth-order", SLOPES, FEDSGD),
    ("zeroth-order", SLOPES, DEVICE),
    ("evaluation", {"local_steps": 1, "weight_unit": 6}, {"device_noise_multiplier": 2.0}),
    (
        "sum",
        {},
        {"device_noise_multiplier": 2.0, "segments": (SegmentSpec("counts", 40, 9.0),)},
    ),
]
