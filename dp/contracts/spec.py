"""What an operator writes to create a task: everything has a sensible default but the name.

A minimal file::

    task = "support-bot"

    [budget]
    max_epsilon = 8.0

``base_model`` and ``adapter`` are filled in by the command line from the model on disk.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from secagg.errors import ConfigurationError
from secagg.graph.parameters import corrupt_floor, corrupt_room
from secagg.manifest import Adapter, BaseModel, LocalOptimiser, ServerOptimiser

SAMPLING_RATE = 0.25  # of a task that does not say otherwise
UNIT_ROWS = 16  # of a person or document, the same


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class CohortSpec(_Table, frozen=True):
    """Who may form a cohort. All numbers count devices. The defaults fit a device's default policy.

    ``size_min``, ``size_max``: a cohort closes at size_max, or at size_min after ``report_s``.
    Beyond 128 devices the graph is sparse; its degree and threshold follow from these numbers.
    ``survivors_min``: fewest devices in a released sum. A sparse graph is made for random drop-outs
    of 1 - survivors_min / size_min of the devices.
    ``corrupt_max``: devices assumed to collude with the aggregator; raises the threshold. None: a
    tenth of size_max and at least 1, which devices demand unless their policy says otherwise, or as
    many as survivors_min has room for, if that is less.
    ``silent_max``: survivors whose noise does not count. None: 1 (or ``corrupt_max``, if larger)
    with noise in the ring, since a participant knows its own share, else 0.
    ``versions_back``: how many versions older than the newest a cohort's models may be. None: 4 for
    fedbuff, else 0. ``model_min``: devices behind each of these models. None: half of survivors_min
    for fedbuff, at least corrupt_max + 2; else 0.
    """

    size_min: int = 24
    size_max: int = 24
    survivors_min: int = 20
    corrupt_max: int | None = None
    silent_max: int | None = None
    versions_back: int | None = None
    model_min: int | None = None

    @property
    def corrupt(self) -> int:
        """``corrupt_max``, or what stands for it."""
        if self.corrupt_max is not None:
            return self.corrupt_max
        room = corrupt_room(self.size_min, self.size_max, self.survivors_min)
        return min(corrupt_floor(self.size_max), room)


class DeadlineSpec(_Table, frozen=True):
    """Seconds that each step may take; a device that is late drops out of the cohort."""

    report_s: float = 600.0
    share_s: float = 30.0
    check_s: float = 30.0
    masked_input_s: float = 120.0
    confirm_s: float = 30.0
    unmask_s: float = 30.0


class BudgetSpec(_Table, frozen=True):
    """``max_epsilon``: unamplified, over all releases of the task; None: no limit.

    ``delta``: of every privacy statement. ``releases_max``: sums that the task may release.
    """

    max_epsilon: float | None = 8.0
    delta: float = 1e-5
    releases_max: int = 4


class TrainingSpec(_Table, frozen=True):
    """What a device does before it reports in, and what the server does with the sum.

    ``local_steps``, ``local_learning_rate``: of the device's own optimiser (not ``fedsgd``).
    ``local_epochs``: passes over a device's own examples, so that those who have more take more
    steps, at most ``local_steps``; 0: all take ``local_steps``.
    ``local_optimiser``: sgd, with heavy ball ``local_momentum``, or adam (begun anew each time).
    ``batch_size``: expected examples per device and step.
    ``proximal_mu``: strength of FedProx's pull to the global model (only ``fedprox``).
    ``server_optimiser``: of the step along the mean; what ``fedavgm``, ``fedadagrad``, ``fedadam``
    and ``fedyogi`` are named after needs no second word here.
    ``server_learning_rate``: of that step. ``server_momentum``: heavy ball, or beta1; None: 0.9
    where moments decay, else 0. ``server_beta2``: None: 0.99 for adam and yogi.
    ``server_tau``: adaptivity of adagrad, adam and yogi; None: 0.001, or the standard deviation
    of the noise in a coordinate of the mean, where that is more.
    ``weight_unit``: examples that count as weight 1; 0 means uniform weights.
    ``denominator``: public constant that the sum is divided by. 0 lets the algorithm choose:
    ``size_max * batch_size`` for fedsgd, ``size_max`` for uniform weights, else the sum of weights.
    ``max_tokens``: tokens kept of an example. ``micro_batch``: examples at once in memory.
    ``directions``, ``perturbation``: slopes per release and step of each (``zeroth-order``).
    ``population``: enrolled devices, whether they take part or not (``scaffold``).
    """

    local_steps: int = 2
    local_learning_rate: float = 1.0
    local_epochs: int = 0
    local_optimiser: LocalOptimiser = "sgd"
    local_momentum: float = 0.0
    batch_size: int = 24
    proximal_mu: float = 0.0
    server_optimiser: ServerOptimiser = "sgd"
    server_learning_rate: float = 1.0
    server_momentum: float | None = None
    server_beta2: float | None = None
    server_tau: float | None = None
    weight_unit: int = 0
    denominator: float = 0.0
    max_tokens: int = 64
    micro_batch: int = 4
    directions: int = 64
    perturbation: float = 0.01
    population: int = 0


class SegmentSpec(_Table, frozen=True):
    """A statistic of the ``sum`` algorithm: ``length`` numbers with L2 norm at most ``clip``."""

    name: str
    length: int
    clip: float


class AdaptiveClipSpec(_Table, frozen=True):
    """The clip follows a private estimate of a quantile of the norms (``dp.noise.adaptive_clip``).

    ``quantile``: share of the units (examples with distributed noise, else devices) whose norm is
    to be at most the clip. ``learning_rate``: the clip moves by a factor of at most exp(this) per
    release, but for noise. ``clip_min``, ``clip_max``: its range; None: a hundredth and a hundred
    times the clip that the task begins with.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    clip_min: float | None = None
    clip_max: float | None = None


class TaskSpec(_Table, frozen=True):
    """One federated task.

    ``algorithm``: ``fedsgd``, ``fedavg``, ``fedprox``, FedAvg with a server optimiser
    (``fedavgm``, ``fedadagrad``, ``fedadam``, ``fedyogi``), ``fednova``, ``scaffold``,
    ``fedbuff``, ``zeroth-order``, ``evaluation`` (loss and accuracy, no step), or ``sum``
    (federated statistics).
    ``privacy``: of one *example*. ``distributed`` (fedsgd): noise shares in the ring;
    ``local`` (fedavg and fedprox): DP-SGD on the device; ``none``.
    ``clip``: L2 bound, of one example's gradient with example privacy, else of a device's update.
    ``noise_multiplier``: noise over ``clip``, standard deviations.
    ``period``: a device divides its examples into so many parts, and the next one is its batch with
    each charge; so an example is in one sum of ``period``, and costs no more. 1: every example may
    be in every release.
    ``sampling_rate``: probability with which an example joins a batch (with a period, one of its
    part). None: 0.25; 1 with a period and distributed noise, where a batch is the whole part.
    ``examples_max``: most examples that one device may sum in one step (distributed).
    ``unit``: what the example-level noise protects. ``example``: each row of the data by itself.
    ``person``, ``document``: all rows that name the same ``unit``, whose gradients are summed and
    clipped as one; clip, batch size, ``examples_max`` and period are then of such units, and rows
    that name none count as zero. ``unit_rows_max``: most rows of a unit that are used.
    ``update_clip``: L2 bound of a device's whole update in fedavg and fedprox. None: 1 with
    device-level privacy, which it is the unit of; else 64, since then it protects nothing and
    only keeps the sum inside the ring.
    ``device_noise_multiplier``: noise over a *device's* bound, for device-level privacy; 0: none.
    ``participation_rate``: with device-level privacy, the probability with which a device of the
    cohort puts its contribution in, by a secret coin; else it sends zero and its noise. Means are
    divided by it; a ``sum`` is that of those who took part.
    ``mechanism``: of the noise in the ring. Sums of Skellam shares are Skellam; the discrete
    Gaussian costs what the Gaussian does up to a term that vanishes for such large shares.
    ``removable_noise``: devices add Skellam noise in parts, and those that the survivors of a
    cohort do not need are taken off its sum; without it every sum keeps what the fewest survivors
    would have needed. Costs one more secret per level and device, and drawing the parts again.
    ``report_slot_s``: devices report in at multiples of this after a version opens, the first that
    leaves a whole one to train in, so that time does not show the batch; 0: when they are ready
    (no amplified statement of distributed noise is then made, and each assumes more of time).
    ``slot_overrun``: chance, stated by the operator, that in one release (all tries at it together)
    a batch makes its device miss its whole slot, or fail, whatever its data; delta pays for it in
    the amplified statements of examples. 0: it is claimed never to happen.
    ``adaptive_clip``: ``clip`` (distributed) or ``update_clip`` (device level) is where the clip
    begins, and each release moves it; absent: it stays.
    ``partners``: whose devices may join, by name or by key (hex); empty: all that are registered
    when the task is created.
    ``start_from``: task whose present model is this one's version 0, with the same base model and
    adapter: to evaluate it (``evaluation``), or to go on training.
    """

    task: str
    algorithm: str = "fedsgd"
    privacy: Literal["distributed", "local", "none"] | None = None
    clip: float = 1.0
    noise_multiplier: float = 1.4
    sampling_rate: float | None = None
    examples_max: int = 256
    period: int = 1
    unit: Literal["example", "person", "document"] = "example"
    unit_rows_max: int = UNIT_ROWS
    update_clip: float | None = None
    device_noise_multiplier: float = 0.0
    participation_rate: float = 1.0
    mechanism: Literal["skellam", "discrete-gaussian"] = "skellam"
    removable_noise: bool = True
    report_slot_s: float = 0.0
    slot_overrun: float = 0.0
    segments: tuple[SegmentSpec, ...] = ()
    cohort: CohortSpec = CohortSpec()
    deadlines: DeadlineSpec = DeadlineSpec()
    budget: BudgetSpec = BudgetSpec()
    training: TrainingSpec = TrainingSpec()
    adaptive_clip: AdaptiveClipSpec | None = None
    partners: tuple[str, ...] = ()
    start_from: str = ""
    base_model: BaseModel | None = None
    adapter: Adapter | None = None

    def rate(self, mode: str) -> float:
        """``sampling_rate``, or what stands for it in a privacy mode."""
        if self.sampling_rate is not None:
            return self.sampling_rate
        return 1.0 if self.period > 1 and mode == "distributed" else SAMPLING_RATE


def parse_spec(text: bytes | str, *, toml: bool = True) -> TaskSpec:
    """Read a task file (TOML, or JSON with ``toml=False``); bytes fields are base64.

    Raises:
        ConfigurationError: ``spec-malformed``, with what is wrong and where.
    """
    try:
        if toml:
            return msgspec.toml.decode(text, type=TaskSpec, strict=True)
        return msgspec.json.decode(text, type=TaskSpec, strict=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError("spec-malformed", f"The task file does not parse: {error}.") from (
            error
        )
