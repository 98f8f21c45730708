"""Federations that carry more between releases than the model: SCAFFOLD's control variates, and
FedBuff's models of several versions in one cohort. See ``tests.kits.federations``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms import Step
from client_sdk.payload import weighed
from client_sdk.rounds.scaffold_control import DeviceControl
from client_sdk.state.journal import Contribution
from secagg.client.states import Exchange
from secagg.ring import Lanes
from tests.kits.device import digest_of, journal_in
from tests.kits.federations import Federation, Values, Vector
from tests.kits.problems import Problem


class Controlled(Federation):
    """Devices that keep c_k in their journals, each read anew, as another process would find it.

    Args:
        folder: of the journals.
    """

    def __init__(self, problem: Problem, folder: Path, *args: Any, **changes: Any) -> None:
        super().__init__(problem, "scaffold", *args, **changes)
        self._journals = [journal_in(folder / str(k)) for k in range(problem.devices)]
        self._digest = digest_of(self.manifest)
        self._ctx: dict[int, bytes] = {}  # by device, of the contribution that it gave last

    def own(self, device: int) -> DeviceControl:
        return DeviceControl(self._journals[device], self.manifest, self._digest)

    @property
    def control(self) -> NDArray[np.float32]:
        """The server's c, as the model file has it."""
        return self.optimiser.get("control", np.zeros(len(self.vector))).astype(np.float32)

    def correction(self, device: int) -> Vector:
        return self.own(device).correction(self.control)

    def encoded(self, value: Values, number: int, rotation_seed: bytes) -> Lanes:
        """What will be added to c_k is written down before the vector is masked."""
        lanes = super().encoded(value, number, rotation_seed)
        kept = Contribution.of(self._digest, bytes(32), value, None, self.control)
        self.own(number).expect(rotation_seed, kept, lanes)
        self._ctx[number] = rotation_seed
        return lanes

    def receipts(self, survivors: Sequence[int]) -> None:
        """The last release proves itself to those whom it holds; nobody else moves c_k."""
        for k in survivors:
            self.own(k).add(self._ctx[k])

    def all_own(self) -> Vector:
        """c_k of every device, float64[devices, d]."""
        return np.array([self.own(k).own for k in range(self.problem.devices)])

    def advance(self, present: Sequence[int]) -> Step:
        """One release of these devices through the ring, without masks."""
        values = self.contributions()
        sums = self.unmasked([values[k] for k in present], present)
        step = self.release(sums, len(present))
        self.receipts(present)
        return step


class Buffered(Federation):
    """Devices that began with different versions of the model.

    ``begun``: the version of each device; a device begins anew when :meth:`begin` says so.
    """

    def __init__(self, problem: Problem, *args: Any, **changes: Any) -> None:
        super().__init__(problem, "fedbuff", *args, **changes)
        self.begun = [0] * problem.devices
        self._vectors = {0: self.vector}

    def version_of(self, device: int) -> int:
        return self.begun[device]

    def vector_of(self, device: int) -> NDArray[np.float32]:
        return self._vectors[self.begun[device]]

    def begin(self, *versions: int) -> None:
        """Device k trains from ``versions[k]`` on."""
        self.begun = list(versions)

    def answer(self, value: Values, number: int, session: Exchange) -> Lanes:
        """Weighed by what the device's machine says of its model, as ``client_sdk`` does it."""
        return super().answer(weighed(self.manifest, value, session.staleness), number, session)

    def weighed(self, values: Sequence[Values], numbers: Sequence[int] = ()) -> list[Values]:
        """As they are sent when all devices are in the roster."""
        newest = max(self.begun)
        return [
            weighed(self.manifest, value, newest - self.begun[k])
            for k, value in zip(numbers or range(len(values)), values, strict=True)
        ]

    def release(self, sums: Mapping[str, Vector], survivors: int, lag: int | None = None) -> Step:
        """``lag`` is known: how far the newest model of the roster is behind the present one."""
        behind = self.version - max(self.begun) if lag is None else lag
        step = super().release(sums, survivors, behind)
        self._vectors[self.version] = self.vector
        return step
