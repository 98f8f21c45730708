"""Device halves of the federated algorithms: what one device adds to the sum."""

from client_sdk.algorithms import fedavg, fedsgd
from client_sdk.algorithms.work import Algorithm, Work

ALGORITHMS: dict[str, Algorithm] = {
    "fedsgd": fedsgd.contribute,
    "fedavg": fedavg.contribute,
    "fedprox": fedavg.contribute,  # the same steps with a proximal term
}

__all__ = ["ALGORITHMS", "Algorithm", "Work"]
