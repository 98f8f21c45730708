"""What a manifest means is said by its algorithm's declaration, and by no comparison of names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import dp
from aggregator.store.models import vector_length
from client_sdk.privacy_modes import repeats
from dp.contracts import ALGORITHMS, algorithm_of, check_manifest
from dp.contracts.algorithms.evaluation import Evaluation
from dp.contracts.algorithms.fedavg import FedAvg
from dp.contracts.algorithms.fedbuff import FedBuff
from dp.contracts.algorithms.federated_sum import FederatedSum
from dp.contracts.algorithms.registry import has_control
from dp.contracts.algorithms.scaffold import Scaffold
from secagg.errors import ConfigurationError
from secagg.manifest import AdaptiveClip, Manifest, encode_manifest, training_manifest
from tests.kits.quadratics import quadratic_spec
from tests.kits.tasks import built, statistics

ROOT = Path(dp.__file__).parents[1]
PACKAGES = ("secagg", "dp", "client_sdk", "aggregator", "secagg_cli")


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in ALGORITHMS


def _lists_names(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call) and node.args:
        return _lists_names(node.args[0])  # frozenset(("fedavg", ...))
    return isinstance(node, ast.Set | ast.Tuple | ast.List) and any(map(_is_name, node.elts))


def comparisons(source: str) -> Iterator[int]:
    """Lines that compare an algorithm's name, with one or with a list, and sets of names."""
    tree = ast.parse(source)
    lists = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and _lists_names(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                if all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                    continue
                for one in (left, *others):
                    asked = isinstance(one, ast.Attribute) and one.attr == "algorithm"
                    named = isinstance(one, ast.Name) and one.id in {"algorithm", *lists}
                    if asked or named or _is_name(one) or _lists_names(one):
                        yield node.lineno
                        break
            case ast.Set() if _lists_names(node):
                yield node.lineno
            case ast.MatchValue(value=value) if _is_name(value):
                yield value.lineno


def test_no_code_compares_the_name_of_an_algorithm() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in comparisons(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'x = manifest.algorithm == "of-tomorrow"',
        'x = manifest.algorithm not in ("sum", "evaluation")',
        "x = algorithm in ANY",
        'x = name == "fedbuff"',
        'NAMES = ("fedsgd", "fedavg")\nx = name in NAMES',
        'x = names - {"evaluation"}',
        'match name:\n    case "sum":\n        pass',
    ],
)
def test_such_a_comparison_would_be_found(line: str) -> None:
    assert list(comparisons(line))


CLIP = AdaptiveClip(quantile=0.5, learning_rate=0.2, clip_min=0.1, clip_max=9.0)


def _as(name: str, manifest: Manifest) -> Manifest:
    return replace(manifest, algorithm=name)


class TestOneOfAnotherName:
    """An algorithm that nothing knows by name means what its declaration says."""

    @pytest.fixture(autouse=True)
    def _register(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for parent in (FedAvg, FedBuff, Scaffold, FederatedSum, Evaluation):
            monkeypatch.setitem(ALGORITHMS, f"my-{parent.__name__}", parent())

    def test_a_buffer_admits_several_versions(self) -> None:
        manifest = built(quadratic_spec("my-FedBuff"))
        assert manifest.cohort.versions_back == 4
        with pytest.raises(ConfigurationError, match="versions-without-buffer"):
            check_manifest(_as("my-FedAvg", manifest))

    def test_a_control_variate_is_kept(self) -> None:
        assert has_control(built(quadratic_spec("my-Scaffold", training={"population": 4})))
        assert not has_control(built(quadratic_spec("my-FedAvg")))

    def test_a_statistic_has_the_operator_s_segments_and_repeats(self) -> None:
        manifest = built(statistics(("a", 3, 1.0), ("b", 2, 1.0), algorithm="my-FederatedSum"))
        assert manifest.training is None
        assert vector_length(manifest) == 5
        assert repeats(manifest)

    def test_what_an_evaluation_sends_repeats(self) -> None:
        manifest = built(quadratic_spec("my-FedAvg"))
        assert not repeats(manifest)
        assert repeats(_as("my-Evaluation", manifest))


@pytest.mark.parametrize("part", ["training", "adapter"])
def test_what_a_task_has_not_is_refused_where_training_begins(part: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{part}-missing"):
        training_manifest(replace(built(quadratic_spec("fedavg")), **{part: None}))


def test_a_manifest_that_trains_is_written_as_the_manifest() -> None:
    for changes in ({}, {"adaptive_clip": CLIP, "slot_overrun": 0.25}):
        manifest = replace(built(quadratic_spec("fedavg")), **changes)
        trains = training_manifest(manifest)
        assert encode_manifest(trains) == encode_manifest(manifest)
        assert msgspec.msgpack.encode(trains) == msgspec.msgpack.encode(manifest)
        assert training_manifest(trains) is trains


def test_an_algorithm_that_nobody_declared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="algorithm-unknown") as refused:
        algorithm_of(_as("of-tomorrow", built(quadratic_spec("fedavg"))))
    assert "fedavg" in refused.value.expected
