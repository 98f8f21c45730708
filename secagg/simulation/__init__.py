"""The real protocol without a network, seeded, with drop-outs; what ``secagg simulate`` runs."""

from secagg.simulation.cohort import (
    Aggregator,
    CohortResult,
    Hooks,
    drive,
    make_devices,
    run_cohort,
)
from secagg.simulation.devices import Delivery, Device, Devices, Drop, LocalDevices, Output
from secagg.simulation.simulate import SimulationResult, simulate
from secagg.simulation.task import EPOCH_S, SeededBytes, SimulatedTask, make_task, seeded_tools

__all__ = [
    "EPOCH_S",
    "Aggregator",
    "CohortResult",
    "Delivery",
    "Device",
    "Devices",
    "Drop",
    "Hooks",
    "LocalDevices",
    "Output",
    "SeededBytes",
    "SimulatedTask",
    "SimulationResult",
    "drive",
    "make_devices",
    "make_task",
    "run_cohort",
    "seeded_tools",
    "simulate",
]
