"""The task manifest: everything that a device must know before it trains or masks.

This floor fixes its structure and its bytes. What combinations are admissible, and what they cost
in privacy, is decided one floor up in ``dp.contracts``, by the same code at task creation and in
the device's veto. The manifest is signed by the aggregator's task key; its digest is in every
context of the protocol, so devices that were shown different manifests do not sum up.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from secagg.errors import ConfigurationError, RemoteProtocolError
from secagg.hashing import digest
from secagg.limits import MANIFEST_BYTES_MAX, PROTOCOL_VERSION, SUITE
from secagg.ranges import Count, Seconds, Units


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Segment(_Part, frozen=True):
    """A named stretch of the payload.

    ``clip`` is the L2 bound in real units of what one device sends (with distributed noise, of one
    *example*),
    ``scale`` the number of integer units per real unit, ``clip_units`` = floor(clip * scale) the
    exact integer L2 bound.
    """

    name: str
    length: Count
    clip: float
    scale: Units
    clip_units: Units


class Encoding(_Part, frozen=True):
    """How the payload lies in the ring Z_{2^ring_bits}."""

    ring_bits: Count
    slice_length: Count
    wrap_log2: float  # log2 of the bound on the probability that a sum wraps around


class Noise(_Part, frozen=True):
    """The noise that every device adds in the ring before masking (device-level, distributed).

    ``share_variance``: variance of one device's share, integer units squared, per coordinate
    (for the discrete Gaussian its parameter sigma^2, the variance up to e^(-2 pi^2 sigma^2)).
    ``honest_min``: survivors whose shares count = survivors_min - silent_max; the guaranteed
    variance of any release is ``share_variance * honest_min``.
    ``removable_drops``: t_1 < .. < t_L, drop-outs up to which each of L further parts is needed;
    the seeds of those that are not are reconstructed with the sum (empty: no part is removable).
    """

    mechanism: Literal["skellam", "discrete-gaussian"]
    share_variance: Units
    honest_min: Count
    removable_drops: tuple[Count, ...] = ()


GroupUnit = Literal["person", "document"]  # units whose rows name it


class ExamplePrivacy(_Part, frozen=True):
    """Example-level terms. ``local``: noise in each local step; ``distributed``: in each sum.

    ``noise_multiplier`` is relative to ``clip``: with local noise of each local step, with
    distributed noise of the sum with the fewest survivors. ``examples_max`` is the public bound on
    examples that one device may sum in one step (distributed noise needs it for the ring).
    ``period``: parts that a device divides its examples into, one of them for each charge
    (``dp.schedule``); not written where every example serves in every release.
    ``unit``, ``unit_rows_max``: all rows that name one unit are what the noise protects: their
    gradients are summed, at most ``unit_rows_max`` of them, and then clipped. Wherever terms speak
    of an example, such a unit is meant. Not written where each row is protected by itself.
    """

    mode: Literal["local", "distributed"]
    clip: float
    noise_multiplier: float
    sampling_rate: float
    examples_max: Count
    period: Count | msgspec.UnsetType = msgspec.UNSET
    unit: GroupUnit | msgspec.UnsetType = msgspec.UNSET
    unit_rows_max: Count | msgspec.UnsetType = msgspec.UNSET

    @property
    def protects(self) -> Literal["example", "person", "document"]:
        """What one clip bounds: a row, or the unit that rows name."""
        return "example" if self.unit is msgspec.UNSET else self.unit

    @property
    def scheduled(self) -> int:
        """Charges from one participation of an example to its next; 1: it is in every release."""
        return 1 if self.period is msgspec.UNSET else self.period


class DevicePrivacy(_Part, frozen=True):
    """Device-level terms: the L2 bound of a device's whole contribution and the noise.

    ``participation_rate``: with this probability, by a secret coin for each cohort, a device puts
    its contribution in; else it sends zero and its noise, and nobody can tell.
    """

    clip: float
    noise_multiplier: float
    participation_rate: float = 1.0


class AdaptiveClip(_Part, frozen=True):
    """How the clip of each version follows a private quantile of the norms
    (``dp.noise.adaptive_clip``).

    ``quantile``: the share of units whose norm is to be at most the clip. ``learning_rate``: of the
    geometric step. The manifest's clip is that of version 0; later ones lie in
    [``clip_min``, ``clip_max``]. The integer grid does not follow.
    """

    quantile: float
    learning_rate: float
    clip_min: float
    clip_max: float


class Budget(_Part, frozen=True):
    """What the task may spend; the headline epsilon is unamplified."""

    max_epsilon: float | None
    delta: float
    releases_max: Count


class CohortRules(_Part, frozen=True):
    """Who may form a cohort.

    ``corrupt_max``: devices that the threshold assumes to collude with the aggregator.
    ``silent_max``: survivors whose noise shares are not counted (at least 1 with noise in the ring,
    since a participant knows its own share).
    ``degree``, ``threshold``: of the graph of a cohort that is too large for the complete one
    (0: every cohort has the complete graph, and its threshold follows from its size).
    ``versions_back``: a cohort admits models up to so many versions older than its newest
    (0: synchronous, exactly one model). ``model_min``: devices behind each admitted model (0:
    ``survivors_min``, of which a cohort has room for one only).
    """

    size_min: Count
    size_max: Count
    survivors_min: Count
    corrupt_max: Count
    silent_max: Count
    degree: Count = 0
    threshold: Count = 0
    versions_back: Count = 0
    model_min: Count = 0

    @property
    def behind_each_model(self) -> int:
        """Fewest devices of a cohort that trained on one of its models."""
        return self.model_min or self.survivors_min


class Deadlines(_Part, frozen=True):
    """Seconds that each step may take before the cohort goes on without the missing."""

    report_s: float  # from the first report-in until a cohort of at least size_min closes
    share_s: float
    check_s: float
    masked_input_s: float
    confirm_s: float
    unmask_s: float


class BaseModel(_Part, frozen=True):
    """The frozen model under the adapter; ``fingerprint`` as in ``client_sdk.training.lora``."""

    name: str
    fingerprint: bytes


class TensorShape(_Part, frozen=True):
    name: str
    rows: Count
    columns: Count


LocalOptimiser = Literal["sgd", "adam"]
ServerOptimiser = Literal["sgd", "momentum", "adagrad", "adam", "yogi"]
AdapterKind = Literal["lora", "ffa-lora", "rolora", "fedsvd", "product"]


class Adapter(_Part, frozen=True):
    """The LoRA adapter; its forms are in :mod:`secagg.lora.forms`.

    The global vector is the change of the trainable tensors from their initialisation, flattened
    row-major in the order of ``trainable``. ``frozen`` tensors are not trained by devices:
    FFA-LoRA's every A comes from ``seed`` alone, FedSVD's is part of the global vector, after B.
    All tensors are initialised from ``seed`` by ``secagg.lora.forms.initial_tensor``; every B
    starts at zero. ``sketch``: columns of each layer's sketch (``product``; else 0).
    """

    kind: AdapterKind
    rank: Count
    alpha: Count
    target_modules: tuple[str, ...]
    seed: bytes
    trainable: tuple[TensorShape, ...]
    frozen: tuple[TensorShape, ...]
    sketch: Count = 0


class Training(_Part, frozen=True):
    """What a device does between check-in and report-in, and what the server does with the sum.

    ``weight_unit`` is the public number of examples that counts as weight 1 (0: uniform weights).
    ``denominator`` is the public constant that the sum is divided by (0: the sum of the weights,
    only without privacy by noise). ``directions``, ``perturbation``: zeroth order's K and step.
    ``server_momentum``, ``server_beta2``, ``server_tau``: the server optimiser's beta1 (or heavy
    ball), beta2 and adaptivity; 0 where it has none. ``local_optimiser``, ``local_momentum``: of
    the device's steps. ``local_epochs``: passes over the device's own examples, in at most
    ``local_steps`` steps (0: every device takes ``local_steps``).
    ``population``: SCAFFOLD's N, all devices that are enrolled, fixed and public.
    """

    local_steps: Count
    local_learning_rate: float
    batch_size: Count
    proximal_mu: float
    server_optimiser: ServerOptimiser
    server_learning_rate: float
    server_momentum: float
    weight_unit: Count
    denominator: float
    max_tokens: Count
    micro_batch: Count
    directions: Count = 0
    perturbation: float = 0.0
    server_beta2: float = 0.0
    server_tau: float = 0.0
    local_optimiser: LocalOptimiser = "sgd"
    local_momentum: float = 0.0
    local_epochs: Count = 0
    population: Count = 0


class Manifest(_Part, frozen=True):
    protocol: Count
    suite: str
    task: str
    created_at: Seconds  # Unix seconds
    algorithm: str
    task_key: bytes  # Ed25519 key that signs this manifest and the aggregator's messages
    ledger_verifier: str  # C2SP verifier key of the ledger
    partner_keys: tuple[bytes, ...]  # Ed25519 keys that may certify devices
    cohort: CohortRules
    deadlines: Deadlines
    segments: tuple[Segment, ...]
    encoding: Encoding
    noise: Noise | None
    example_privacy: ExamplePrivacy | None
    device_privacy: DevicePrivacy | None
    budget: Budget
    report_slot_s: float  # report-in happens this long after a version opens (0: when ready)
    base_model: BaseModel | None
    adapter: Adapter | None
    training: Training | None
    # Not written where a task has none, so that the digests of such manifests are as they were.
    adaptive_clip: AdaptiveClip | msgspec.UnsetType = msgspec.UNSET
    # Chance per release that a batch makes its device miss the slot, or fail (unset: never).
    slot_overrun: float | msgspec.UnsetType = msgspec.UNSET

    @property
    def clip_adaptation(self) -> AdaptiveClip | None:
        """How the clip adapts; None: it is fixed."""
        return None if self.adaptive_clip is msgspec.UNSET else self.adaptive_clip

    @property
    def overrun(self) -> float:
        """Stated chance, in one release, that a batch makes its device miss its slot, or fail;
        0: it is claimed never to happen."""
        return 0.0 if self.slot_overrun is msgspec.UNSET else self.slot_overrun

    @property
    def removable_drops(self) -> tuple[int, ...]:
        """Drop-outs up to which each removable part of the noise is needed; empty: none is."""
        return self.noise.removable_drops if self.noise else ()

    @property
    def data_length(self) -> int:
        """Coordinates of all segments, without check coordinates."""
        return sum(segment.length for segment in self.segments)


class TrainingManifest(Manifest, frozen=True):
    """A manifest that trains: :func:`training_manifest` makes one where a room for training begins.

    Its bytes are the manifest's. It is not equal to the manifest, so it is not stored or compared.
    """

    adapter: Adapter
    training: Training


def training_manifest(manifest: Manifest) -> TrainingManifest:
    """The same manifest, known to have an adapter and training terms.

    Raises:
        ConfigurationError: ``training-missing``, ``adapter-missing``.
    """
    if isinstance(manifest, TrainingManifest):
        return manifest
    if manifest.training is None:
        raise ConfigurationError(
            "training-missing",
            f"{manifest.algorithm} needs the training terms, and the task has none.",
            remedy="Create the task anew: task creation fills them in.",
        )
    if manifest.adapter is None:
        raise ConfigurationError(
            "adapter-missing",
            f"{manifest.algorithm} trains an adapter, and the task has none.",
            remedy="Name a base model and an adapter, or use the algorithm 'sum'.",
        )
    return TrainingManifest(**msgspec.structs.asdict(manifest))


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Manifest, strict=True)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's bytes (MessagePack). What is signed and hashed is these bytes as sent.

    A whole number in a field of floats is written as a float.
    """
    try:
        return _encoder.encode(_decoder.decode(_encoder.encode(manifest)))
    except msgspec.MsgspecError:  # out of some range: whoever checks the manifest says of which
        return _encoder.encode(manifest)


def decode_manifest(encoded: bytes) -> Manifest:
    """Parse manifest bytes strictly.

    Raises:
        RemoteProtocolError: reason ``manifest-too-large``, ``manifest-malformed``,
            ``manifest-not-canonical`` or ``manifest-version``.
    """
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise RemoteProtocolError(
            "manifest-too-large",
            "The manifest is too large.",
            expected=MANIFEST_BYTES_MAX,
            found=len(encoded),
        )
    try:
        manifest = _decoder.decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(
            "manifest-malformed", f"The manifest does not parse: {error}."
        ) from error
    if not _is_canonical(encoded, manifest):
        raise RemoteProtocolError(
            "manifest-not-canonical",
            "The manifest's bytes have a second reading: a key twice or out of order, or a value "
            "that is not in its shortest form.",
            remedy="Do not trust the task: an honest aggregator writes each value in one way.",
        )
    if (manifest.protocol, manifest.suite) != (PROTOCOL_VERSION, SUITE):
        raise RemoteProtocolError(
            "manifest-version",
            "The manifest speaks another protocol.",
            expected=(PROTOCOL_VERSION, SUITE),
            found=(manifest.protocol, manifest.suite),
            remedy="Update this side or the other.",
        )
    return manifest


def _is_canonical(encoded: bytes, manifest: Manifest) -> bool:
    """Whether the bytes that gave ``manifest`` are the only ones for what they say.

    The bytes are judged and not the manifest: one of before lacks fields that came later.
    """
    found = msgspec.msgpack.decode(encoded)
    if msgspec.msgpack.encode(found) != encoded:  # a key twice, a number in more bytes than it has
        return False
    return _is_part(found, msgspec.msgpack.decode(_encoder.encode(manifest)))


def _is_part(found: object, whole: object) -> bool:
    """``found`` is ``whole``, in order and type, less fields that ``whole`` filled in."""
    if isinstance(found, dict) and isinstance(whole, dict):
        return list(found) == [key for key in whole if key in found] and all(
            _is_part(value, whole[key]) for key, value in found.items()
        )
    if isinstance(found, list) and isinstance(whole, list):
        return len(found) == len(whole) and all(map(_is_part, found, whole))
    return type(found) is type(whole)


def manifest_digest(encoded: bytes) -> bytes:
    """SHA-256 of the manifest's bytes as sent, labelled; 32 bytes."""
    return digest("manifest", encoded)
