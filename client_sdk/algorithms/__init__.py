"""Device halves of the federated algorithms: what one device adds to the sum."""

from client_sdk.algorithms.fedavg import contribute as fedavg
from client_sdk.algorithms.fedsgd import contribute as fedsgd
from client_sdk.algorithms.work import Algorithm, Work

ALGORITHMS: dict[str, Algorithm] = {
    "fedsgd": fedsgd,
    "fedavg": fedavg,
    "fedprox": fedavg,  # the same steps with proximal_mu > 0
}

__all__ = ["ALGORITHMS", "Algorithm", "Work"]
