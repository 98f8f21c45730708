"""The one validator: run when a task is created, and by every device before it trains.

It trusts nothing in the manifest: derived values are derived again and compared.
"""

from __future__ import annotations

import math

from dp.accounting.figures import limit_shown, upper
from dp.accounting.statements import headline, lines, local_step
from dp.contracts.adaptive import check_adaptive
from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.algorithms.fedbuff import check_versions
from dp.contracts.algorithms.local_steps import STEPS_MAX, refuse_local_terms
from dp.contracts.algorithms.registry import algorithm_of
from dp.contracts.derive import SHARE_VARIANCE_MAX
from dp.contracts.forms import check_form
from dp.contracts.optimisers import check_server_optimiser
from dp.contracts.rules import (
    check_cohort,
    check_encoding,
    check_grid,
    check_joint_clip,
    check_noise,
    in_range,
    refuse,
)
from dp.contracts.scheduled import check_schedule
from dp.contracts.slot import check_overrun, check_slot
from dp.contracts.units import check_delta, check_unit
from dp.errors import AccountingError, LedgerError
from dp.noise.grid import examples_factor
from dp.tlog.notes import parse_verifier
from secagg.errors import ConfigurationError
from secagg.limits import (
    IDENTITY_KEY_BYTES,
    MANIFEST_BYTES_MAX,
    PARTNERS_MAX,
    PROTOCOL_VERSION,
    SEED_BYTES,
    SUITE,
    VECTOR_LENGTH_MAX,
)
from secagg.lora.forms import size
from secagg.manifest import Manifest, TrainingManifest, encode_manifest, training_manifest

_MODEL_NAME_MAX = 256  # characters; a path or a hub id


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that is wrong, impossible, or weaker than it says.

    Raises:
        ConfigurationError: with a stable reason; see the rules in this package.
    """
    check_recorded(manifest)
    check_delta(manifest)


def check_recorded(manifest: Manifest) -> None:
    """The rules that hold for every ledger: those of :func:`check_manifest` but for delta against
    the units, which earlier versions did not compare. A report warns instead.

    Raises:
        ConfigurationError: with a stable reason; see the rules in this package.
    """
    algorithm = algorithm_of(manifest)
    _check_identity(manifest)
    check_cohort(manifest)
    check_versions(manifest, algorithm)
    for name in ("report_s", "share_s", "check_s", "masked_input_s", "confirm_s", "unmask_s"):
        in_range(name, getattr(manifest.deadlines, name), 0, 30 * 86_400, open_low=True)
    check_slot(manifest)
    in_range("budget.delta", manifest.budget.delta, 0, 0.1, open_low=True)
    in_range("budget.releases_max", manifest.budget.releases_max, 1, 10**6)
    check_grid(manifest.segments)
    check_adaptive(manifest)
    _check_privacy(manifest, algorithm)
    check_schedule(manifest, algorithm)
    _check_base_model(manifest)
    _check_adapter(manifest)
    algorithm.check(manifest)
    if algorithm.has_adapter:
        _check_training(training_manifest(manifest), algorithm)
    check_noise(manifest)
    check_encoding(manifest)
    _check_budget(manifest)
    check_overrun(manifest)
    encoded_bytes = len(encode_manifest(manifest))
    if encoded_bytes > MANIFEST_BYTES_MAX:
        refuse(
            "manifest-too-large",
            "The manifest is too large.",
            expected=f"<= {MANIFEST_BYTES_MAX} bytes",
            found=encoded_bytes,
        )


def _check_identity(manifest: Manifest) -> None:
    if (manifest.protocol, manifest.suite) != (PROTOCOL_VERSION, SUITE):
        refuse(
            "manifest-version",
            "The manifest speaks another protocol.",
            expected=(PROTOCOL_VERSION, SUITE),
            found=(manifest.protocol, manifest.suite),
        )
    name = manifest.task
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789-_."
    if not (1 <= len(name) <= 64 and name[0].isalnum() and all(c in allowed for c in name)):
        refuse(
            "task-name",
            "A task's name is 1 to 64 of a-z, 0-9, '-', '_', '.', the first a letter or digit.",
            found=name,
        )
    if len(manifest.task_key) != IDENTITY_KEY_BYTES:
        refuse("task-key", "The task key is not an Ed25519 key.", found=len(manifest.task_key))
    in_range("created_at", manifest.created_at, 0, 1 << 52)
    try:
        parse_verifier(manifest.ledger_verifier)
    except LedgerError as error:
        raise ConfigurationError(
            "ledger-verifier", "The ledger's verifier key does not parse."
        ) from error
    keys = manifest.partner_keys
    if (
        not 1 <= len(keys) <= PARTNERS_MAX
        or len(set(keys)) != len(keys)
        or any(len(key) != IDENTITY_KEY_BYTES for key in keys)
    ):
        refuse(
            "partner-keys",
            "A task needs distinct Ed25519 keys of the partners whose devices may join.",
            expected=f"1 to {PARTNERS_MAX}",
            found=len(keys),
            remedy="Add a partner first, or name the task's partners.",
        )


def _check_privacy(manifest: Manifest, algorithm: Algorithm) -> None:
    example, device = manifest.example_privacy, manifest.device_privacy
    if example is not None:
        in_range("clip", example.clip, 0, 1e12, open_low=True)
        in_range("noise_multiplier", example.noise_multiplier, 0, 1e4, open_low=True)
        in_range("sampling_rate", example.sampling_rate, 0, 1, open_low=True)
        check_unit(example)
        if example.mode == "distributed":
            in_range("examples_max", example.examples_max, 1, 1 << 20)
        else:
            in_range(
                "variance of a local step",
                local_step(manifest).variance,
                1,
                SHARE_VARIANCE_MAX,
                reason="noise-too-large",
            )
    if device is not None:
        in_range("device clip", device.clip, 0, 1e13, open_low=True)
        in_range("device noise multiplier", device.noise_multiplier, 0, 1e4, open_low=True)
        in_range("participation_rate", device.participation_rate, 2**-11, 1)
        if algorithm.joint_clip:
            check_joint_clip(manifest)
        else:
            bound = manifest.segments[0].clip * examples_factor(manifest)
            if not math.isclose(device.clip, bound, rel_tol=1e-9):
                refuse(
                    "clip-mismatch",
                    "The device's bound does not follow from the segment's.",
                    expected=bound,
                    found=device.clip,
                )


def _check_base_model(manifest: Manifest) -> None:
    """Its name is shown to people and compared with their lists, so it is plain text."""
    model = manifest.base_model
    if model is None:
        return
    if not (1 <= len(model.name) <= _MODEL_NAME_MAX and model.name.isprintable()):
        refuse(
            "base-model-name",
            "A base model's name is printable text.",
            expected=f"1 to {_MODEL_NAME_MAX} printable characters",
            found=model.name[:_MODEL_NAME_MAX],
        )


def _check_adapter(manifest: Manifest) -> None:
    adapter = manifest.adapter
    if adapter is None:
        return
    in_range("rank", adapter.rank, 1, 1 << 16)
    in_range("alpha", adapter.alpha, 1, 1 << 20)
    if len(adapter.seed) != SEED_BYTES:
        refuse("adapter-seed", "The seed has another size.", expected=SEED_BYTES)
    names = [tensor.name for tensor in (*adapter.trainable, *adapter.frozen)]
    if len(set(names)) != len(names) or not adapter.trainable:
        refuse("adapter-tensors", "An adapter needs distinct tensors, and some to train.")
    for tensor in (*adapter.trainable, *adapter.frozen):
        in_range(f"shape of {tensor.name}", min(tensor.rows, tensor.columns), 1, 1 << 28)
    numbers = size((*adapter.trainable, *adapter.frozen))
    if numbers > VECTOR_LENGTH_MAX:
        refuse(
            "adapter-too-large",
            "All tensors of an adapter, trained and frozen, lie in a device's memory.",
            expected=f"<= {VECTOR_LENGTH_MAX} numbers",
            found=numbers,
            remedy="Use a smaller rank, or fewer target modules.",
        )
    check_form(manifest, adapter)


def _check_training(manifest: TrainingManifest, algorithm: Algorithm) -> None:
    training = manifest.training
    if not algorithm.keeps_control and training.population != 0:
        refuse(
            "population-without-control",
            f"{manifest.algorithm} has no use for the enrolled population.",
            expected=0,
            found=training.population,
            remedy="Leave population out, or use the algorithm 'scaffold'.",
        )
    if not algorithm.has_directions and training.directions != 0:
        refuse(
            "directions-without-zeroth-order",
            f"{manifest.algorithm} has no directions.",
            expected=0,
            found=training.directions,
        )
    in_range("local_steps", training.local_steps, 1, STEPS_MAX)
    in_range("local_learning_rate", training.local_learning_rate, 0, 1e6)
    in_range("proximal_mu", training.proximal_mu, 0, 1e6)
    in_range("perturbation", training.perturbation, 0, 1)
    in_range("batch_size", training.batch_size, 1, 1 << 20)
    in_range("micro_batch", training.micro_batch, 1, 1 << 16)
    in_range("max_tokens", training.max_tokens, 2, 1 << 20)
    in_range("weight_unit", training.weight_unit, 0, 1 << 40)
    in_range("denominator", training.denominator, 0, 1e12)
    if not algorithm.local_steps:
        refuse_local_terms(manifest)
    check_server_optimiser(training)


def _check_budget(manifest: Manifest) -> None:
    budget = manifest.budget
    if budget.max_epsilon is not None:
        in_range("budget.max_epsilon", budget.max_epsilon, 0, 1e6, open_low=True)
    try:
        cost = headline(lines(manifest, budget.releases_max))
    except AccountingError as error:
        raise ConfigurationError("cost-unknown", f"The cost cannot be vouched for: {error}") from (
            error
        )
    if budget.max_epsilon is None:
        if cost is not None and not math.isfinite(cost):
            refuse(
                "cost-infinite",
                "An epsilon beyond about 35 promises nothing, and is refused.",
                expected="a finite epsilon",
                found=upper(cost),
                remedy="Use more noise or fewer releases, or privacy = 'none' if none is wanted.",
            )
        return
    if cost is None:
        refuse(
            "budget-without-privacy",
            "An epsilon is promised, and no privacy mode is on.",
            expected="max_epsilon unset",
            found=budget.max_epsilon,
            remedy="Choose a privacy mode, or leave max_epsilon out.",
        )
        return
    if cost > budget.max_epsilon:
        refuse(
            "budget-exceeded",
            f"{budget.releases_max} releases cost more than the task may spend.",
            expected=f"epsilon <= {limit_shown(budget.max_epsilon)}",
            found=upper(cost),
            remedy="Use more noise, fewer releases, or a larger max_epsilon.",
        )
