"""What a device does between two releases: how many steps, of which kind, and what they add up to.

A device's change after tau steps is -eta sum_j a_j g_j with a_j >= 0 that depend on tau and the
local optimiser alone (Wang et al. 2020, FedNova, section 4). ``step_weights`` gives a,
``normaliser`` its L1 norm: tau for plain SGD, [tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho) for
momentum rho, and [1 - (1 - eta mu)^tau] / (eta mu) with a proximal term. Adam has no such a.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dp.contracts.rules import in_range, refuse
from dp.contracts.spec import TrainingSpec
from secagg.manifest import Training, TrainingManifest

STEPS_MAX = 100_000


def steps_of(training: Training, examples: int) -> int:
    """Local steps of a device that holds ``examples`` examples.

    ``local_epochs`` passes over them in batches of ``batch_size``, at most ``local_steps``; without
    epochs ``local_steps``, whatever the device holds.
    """
    if training.local_epochs == 0:
        return training.local_steps
    needed = -(-training.local_epochs * examples // training.batch_size)
    return max(1, min(needed, training.local_steps))


def step_weights(steps: int, momentum: float = 0.0, pull: float = 0.0) -> NDArray[np.float64]:
    """a, float64[steps]: what each step's gradient counts for in the whole change.

    With velocity v <- momentum v + g and y <- y - eta (v + mu (y - x)), a gradient counts
    sum_l (1 - pull)^(k - l) momentum^l for the k steps after it.

    Args:
        pull: eta mu, in [0, 1[ (beyond that a is not positive).
    """
    later = np.empty(steps)
    weight, power = 0.0, 1.0
    for k in range(steps):
        weight = (1 - pull) * weight + power
        power *= momentum
        later[k] = weight
    return later[::-1]


def normaliser(training: Training | TrainingSpec, steps: int) -> float:
    """|a|_1 of a device that takes ``steps`` steps under these terms."""
    pull = training.local_learning_rate * training.proximal_mu
    return float(step_weights(steps, training.local_momentum, pull).sum())


def check_local(manifest: TrainingManifest) -> None:
    """Ranges of the local terms, and what each excludes.

    Raises:
        ConfigurationError: ``privacy-mode``, ``parameter-out-of-range``, ``momentum-with-adam``,
            ``epochs-reveal-examples``, ``proximal-term-lost``.
    """
    training, example = manifest.training, manifest.example_privacy
    if example is not None and example.mode != "local":
        refuse(
            "privacy-mode",
            "Noise over the sum of examples needs one sum per step.",
            expected="local or none",
            found=example.mode,
            remedy="Use fedsgd for privacy = 'distributed'.",
        )
    in_range("local_steps", training.local_steps, 1, STEPS_MAX)
    in_range("local_epochs", training.local_epochs, 0, 1000)
    in_range("local_learning_rate", training.local_learning_rate, 0, 1e6, open_low=True)
    in_range("local_momentum", training.local_momentum, 0, 0.9999)
    if training.local_optimiser == "adam" and training.local_momentum != 0:
        refuse(
            "momentum-with-adam",
            "Adam has moments of its own.",
            expected="local_momentum = 0",
            found=training.local_momentum,
        )
    if training.local_epochs != 0 and example is not None:
        refuse(
            "epochs-reveal-examples",
            "The number of steps would follow from the number of examples, which is private.",
            expected="local_epochs = 0",
            found=training.local_epochs,
            remedy="Let every device take local_steps.",
        )
    if training.proximal_mu != 0 and training.local_optimiser != "sgd":
        refuse(
            "proximal-term-lost",
            "Adam rescales every coordinate, and the proximal term with it: mu would mean nothing.",
            expected="local_optimiser = 'sgd'",
            found=training.local_optimiser,
        )


def refuse_local_terms(manifest: TrainingManifest) -> None:
    """An algorithm of one sum per step has no local optimiser.

    Raises:
        ConfigurationError: ``local-terms-unused``.
    """
    training = manifest.training
    found = (training.local_optimiser, training.local_momentum, training.local_epochs)
    if found != ("sgd", 0.0, 0):
        refuse(
            "local-terms-unused",
            f"{manifest.algorithm} takes no local steps that these terms could shape.",
            expected=("sgd", 0.0, 0),
            found=found,
            remedy="Leave local_optimiser, local_momentum and local_epochs out.",
        )
