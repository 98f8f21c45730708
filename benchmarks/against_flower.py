"""Flower's SecAgg+ functions and ours on the same cohort, in one run on one machine.

    python benchmarks/against_flower.py                    # n = 100, 30 neighbours, d = 100k and 1M
    python benchmarks/against_flower.py --lengths 100000 --out result.json

``flwr`` pins other versions of libraries that this project uses, so it is installed into a virtual
environment of its own (``--venv``, kept for the next run) and its public functions are called
there, in a child process. Nothing of it is copied. Case by case, theirs and ours run in turn, and
CPU seconds (all threads) are compared, since wall time depends on what else runs.

What is timed, on both sides:

client  agree on one key per neighbour, expand its mask, add all of them and the device's own to
        the vector, and make the bytes that go over the wire (no sharing, no sealing of shares)
server  add the survivors' vectors, reconstruct every secret from its shares, agree on the keys
        of the dropped devices' edges, expand what is left in the sum, and take it off

Both sides use 2^32 as modulus and the same graph (a ring with its nearest neighbours) and
threshold. Their generator is seeded with 32 bits (Mersenne Twister), ours with 256 (AES-256-CTR).
Before anything is timed, both sides open a small cohort and compare with the true sum.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SELF = Path(__file__).resolve()
CHECK_LENGTH = 100


class Graph:
    """A ring in which every device is joined to its ``degree`` nearest; the first ones drop."""

    def __init__(self, clients: int, degree: int, dropped: int) -> None:
        self.clients, self.degree = clients, degree
        # Spread over the ring, so that no neighbourhood loses more than its share.
        self.dropped = {clients * number // dropped for number in range(dropped)}
        self.survivors = [i for i in range(clients) if i not in self.dropped]
        self.threshold = degree // 2 + 1

    def neighbours(self, index: int) -> list[int]:
        half = self.degree // 2
        return sorted((index + step) % self.clients for step in range(-half, half + 1) if step)


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# -- theirs: runs in the other environment --------------------------------------------------------


class Flower:
    modulus = 1 << 32

    def __init__(self, graph: Graph) -> None:
        from flwr.common.secure_aggregation.crypto.shamir import create_shares
        from flwr.supercore.primitives.asymmetric import (
            generate_key_pairs,
            private_key_to_bytes,
            public_key_to_bytes,
        )

        self.graph = graph
        pairs = [generate_key_pairs() for _ in range(graph.clients)]
        self.private = [private_key_to_bytes(private) for private, _ in pairs]
        self.public = [public_key_to_bytes(public) for _, public in pairs]
        self.seeds = [os.urandom(32) for _ in range(graph.clients)]
        self.shares = [
            create_shares(
                self.private[i] if i in graph.dropped else self.seeds[i],
                graph.threshold,
                graph.degree,
            )[: graph.threshold]
            for i in range(graph.clients)
        ]

    def _pair(self, private: bytes, public: bytes, length: int) -> list[Any]:
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
        from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

        key = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))
        return pseudo_rand_gen(key, self.modulus, [(length,)])

    def client(self, index: int, values: Any) -> bytes:
        from flwr.common.secure_aggregation.ndarrays_arithmetic import (
            parameters_addition,
            parameters_mod,
            parameters_subtraction,
        )
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

        shape = [(len(values),)]
        vector = parameters_addition(
            [values], pseudo_rand_gen(self.seeds[index], self.modulus, shape)
        )
        for other in self.graph.neighbours(index):
            mask = self._pair(self.private[index], self.public[other], len(values))
            combine = parameters_addition if index > other else parameters_subtraction
            vector = combine(vector, mask)
        masked: bytes = parameters_mod(vector, self.modulus)[0].tobytes()
        return masked

    def server(self, length: int, uploads: Callable[[int], bytes]) -> Any:
        from flwr.common.secure_aggregation.crypto.shamir import combine_shares
        from flwr.common.secure_aggregation.ndarrays_arithmetic import (
            parameters_addition,
            parameters_mod,
            parameters_subtraction,
        )
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

        total = [np.zeros(length, np.int64)]
        for index in self.graph.survivors:
            total = parameters_addition(total, [np.frombuffer(uploads(index), np.int64)])
        total = parameters_mod(total, self.modulus)
        for index in range(self.graph.clients):
            secret = combine_shares(self.shares[index])
            if index not in self.graph.dropped:
                mask = pseudo_rand_gen(secret, self.modulus, [(length,)])
                total = parameters_subtraction(total, mask)
                continue
            for other in self.graph.neighbours(index):
                if other in self.graph.dropped:
                    continue
                mask = self._pair(secret, self.public[other], length)
                combine = parameters_addition if index > other else parameters_subtraction
                total = combine(total, mask)
        return parameters_mod(total, self.modulus)[0]

    def small(self, values: Any) -> Any:
        return values.astype(np.int64)

    def random_upload(self, length: int) -> bytes:
        return np.frombuffer(secrets.token_bytes(4 * length), "<u4").astype(np.int64).tobytes()


# -- ours -----------------------------------------------------------------------------------------


class Ours:
    bits = 32

    def __init__(self, graph: Graph) -> None:
        from secagg import sealing, sharing
        from secagg.context import KIND_PAIR_SEED, MASK_KEY, pair_seed, seal_info
        from secagg.graph.harary import sealer
        from secagg.secret import Secret

        self.graph = graph
        self.ctx, self.salt = os.urandom(32), os.urandom(32)
        self.names = [os.urandom(32) for _ in range(graph.clients)]
        self.secrets = [Secret(os.urandom(32)) for _ in range(graph.clients)]
        self.seeds = [Secret(os.urandom(32)) for _ in range(graph.clients)]
        public = [sealing.kem_public_key(secret, MASK_KEY) for secret in self.secrets]
        self.private = [sealing.kem_private_key(secret, MASK_KEY) for secret in self.secrets]
        self.sealed: dict[tuple[int, int], bytes] = {}
        for i in range(graph.clients):
            for j in graph.neighbours(i):
                if sealer(i, j) == i:
                    own, peer = self.names[i], self.names[j]
                    seed = pair_seed(self.secrets[i], self.ctx, own, peer).reveal()
                    info = seal_info(self.ctx, own, peer, KIND_PAIR_SEED)
                    self.sealed[i, j] = sealing.hpke_seal(public[j], info, seed)
        self.shares = []
        for i in range(graph.clients):
            secret = self.secrets[i] if i in graph.dropped else self.seeds[i]
            dealt = sharing.split(secret, graph.threshold, graph.neighbours(i), os.urandom)
            kept = list(dealt)[: graph.threshold]
            self.shares.append({holder: dealt[holder].reveal() for holder in kept})

    def _pair(self, secret: Any, private: Any, index: int, other: int) -> Any:
        from secagg import sealing
        from secagg.context import KIND_PAIR_SEED, pair_seed, seal_info
        from secagg.secret import Secret

        own, peer = self.names[index], self.names[other]
        if (index, other) in self.sealed:
            return pair_seed(secret, self.ctx, own, peer)
        info = seal_info(self.ctx, peer, own, KIND_PAIR_SEED)
        return Secret(sealing.hpke_open(private, info, self.sealed[other, index]))

    def client(self, index: int, values: Any) -> bytes:
        from secagg import ring
        from secagg.masks import MaskTerm, apply_masks, mask_key

        terms = [MaskTerm(mask_key(self.seeds[index], self.salt), 1)]
        for other in self.graph.neighbours(index):
            seed = self._pair(self.secrets[index], self.private[index], index, other)
            terms.append(MaskTerm(mask_key(seed, self.salt), 1 if index > other else -1))
        apply_masks(values, terms, self.bits)
        return ring.pack(values, self.bits)

    def server(self, length: int, uploads: Callable[[int], bytes]) -> Any:
        from secagg import ring, sealing, sharing
        from secagg.context import MASK_KEY
        from secagg.masks import MaskTerm, mask_key
        from secagg.unmasking import UnmaskingPlan, unmask_slice

        total = np.zeros(length, ring.lane_dtype(self.bits))
        for index in self.graph.survivors:
            ring.add_into(total, ring.unpack(uploads(index), length, self.bits), self.bits)
        terms = []
        coefficients: dict[tuple[int, ...], dict[int, int]] = {}
        for index, shares in enumerate(self.shares):
            holders = tuple(shares)
            if holders not in coefficients:
                coefficients[holders] = sharing.lagrange_at_zero(holders)
            secret = sharing.join(shares, coefficients[holders])
            if index not in self.graph.dropped:
                terms.append(MaskTerm(mask_key(secret, self.salt), -1))
                continue
            private = sealing.kem_private_key(secret, MASK_KEY)
            for other in self.graph.neighbours(index):
                if other not in self.graph.dropped:
                    key = mask_key(self._pair(secret, private, index, other), self.salt)
                    terms.append(MaskTerm(key, 1 if index > other else -1))
        unmask_slice(UnmaskingPlan(self.bits, length, tuple(terms)), total, 0, length)
        return total

    def small(self, values: Any) -> Any:
        return values.astype("<u4")

    def random_upload(self, length: int) -> bytes:
        return secrets.token_bytes(4 * length)


# -- measuring ------------------------------------------------------------------------------------


def measure(side: type[Any], case: dict[str, int]) -> dict[str, float]:
    graph = Graph(case["clients"], case["degree"], case["dropped"])
    parties = side(graph)
    length, device = case["length"], graph.survivors[-1]

    values = {
        i: np.arange(CHECK_LENGTH, dtype=np.int64) + i
        for i in range(graph.clients)
        if i not in graph.dropped
    }
    small = {i: parties.client(i, parties.small(v)) for i, v in values.items()}
    opened = parties.server(CHECK_LENGTH, small.__getitem__)
    if not np.array_equal(opened.astype(np.int64), sum(values.values())):
        raise SystemExit("the unmasked sum is wrong")

    vector = parties.small(np.arange(length) % 1_000)
    client_s, sent = cpu(lambda: parties.client(device, vector.copy()))
    # What the server adds up is alike for every device; nothing depends on its values.
    upload = parties.random_upload(length)
    server_s, _ = cpu(lambda: parties.server(length, lambda _: upload))
    return {"client_s": client_s, "server_s": server_s, "upload_bytes": len(sent)}


def install(venv: Path) -> Path:
    python = venv / "bin" / "python"
    if not python.exists():
        print(f"installing flwr into {venv} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "flwr"], check=True)
    return python


def theirs(python: Path, case: dict[str, int]) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["FLWR_TELEMETRY_ENABLED"] = "0"
    command = [str(python), str(SELF), "--flower-case", json.dumps(case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| d | dropped | client, Flower | ours | factor | server, Flower | ours | factor "
        "| bytes a coordinate, Flower | ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b, d = row["flower"], row["ours"], row["length"]
        lines.append(
            f"| {d:,} | {row['dropped']} | {a['client_s']:.3f} s | {b['client_s']:.3f} s "
            f"| {a['client_s'] / b['client_s']:.0f} | {a['server_s']:.2f} s "
            f"| {b['server_s']:.3f} s | {a['server_s'] / b['server_s']:.0f} "
            f"| {a['upload_bytes'] / d:.1f} | {b['upload_bytes'] / d:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--degree", type=int, default=30, help="even")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache/secagg/flower-venv")
    parser.add_argument("--out", type=Path, help="write the result as JSON here too")
    parser.add_argument("--flower-case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flower_case:
        print(json.dumps(measure(Flower, json.loads(arguments.flower_case))))
        return
    sys.path.insert(0, str(SELF.parent.parent))
    from client_sdk.outputs import check_file, write_file

    if arguments.out:
        check_file(arguments.out)
    python = install(arguments.venv)
    rows = []
    for length in arguments.lengths:
        for dropout in arguments.dropout:
            case = {
                "clients": arguments.clients,
                "degree": arguments.degree,
                "length": length,
                "dropped": round(dropout * arguments.clients),
            }
            rows.append({**case, "flower": theirs(python, case), "ours": measure(Ours, case)})
            print(f"d = {length:,}, {case['dropped']} dropped: done", file=sys.stderr)
    print(table(rows))
    result = {"rows": rows, "load": os.getloadavg()[0], "cpus": os.cpu_count()}
    print(json.dumps(result))
    if arguments.out:
        write_file(arguments.out, json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
