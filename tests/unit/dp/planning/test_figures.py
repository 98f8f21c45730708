"""The derived numbers of a task, against those that its parts compute themselves."""

import math

import pytest

from dp.contracts import CohortSpec
from dp.planning.figures import figures_of
from dp.transfer_sizes import download_size, messages_size, upload_size
from secagg.graph.degrees import ThreatModel, plan_cohort
from tests.kits.tasks import DEMO_ADAPTER, built, statistics


def test_the_figures_of_the_default_task() -> None:
    manifest = built(adapter=DEMO_ADAPTER)
    found = figures_of(manifest)
    noise = manifest.noise
    assert (found.privacy, found.example_noise, found.device_noise) == ("distributed", 1.4, None)
    assert (found.numbers, found.ring_bits) == (92_160, manifest.encoding.ring_bits)
    assert found.vector_bytes == upload_size(manifest) > 92_160 * found.ring_bits // 8
    assert (found.messages_up_bytes, found.messages_down_bytes) == messages_size(manifest)
    assert found.model_bytes == download_size(manifest) > 4 * 92_160
    assert found.noise is not None
    assert found.noise.guaranteed == pytest.approx(1.4, rel=1e-3)  # times a clip of 1
    assert found.noise.most >= found.noise.guaranteed
    assert found.noise.levels == len(noise.removable_drops)
    rules = manifest.cohort
    assert found.drop_outs_max == rules.size_max - rules.survivors_min
    plan = plan_cohort(ThreatModel(rules.size_max, rules.corrupt_max, found.drop_outs_max))
    assert (found.degree, found.threshold) == (plan.degree, plan.threshold)
    assert found.neighbours_lost_max == plan.degree - plan.threshold
    assert found.complete
    assert found.round_s_max == pytest.approx(240.0)
    assert math.isclose(sum(found.deadlines_s.values()), 240.0 + manifest.deadlines.report_s)


def test_a_sparse_graph_has_the_manifest_s_degree_and_a_statistic_no_model() -> None:
    cohort = CohortSpec(size_min=200, size_max=200, survivors_min=160, corrupt_max=20)
    found = figures_of(built(statistics(("a", 3, 1.0), cohort=cohort)))
    assert not found.complete
    assert 0 < found.threshold < found.degree < 199
    assert (found.model_bytes, found.noise, found.privacy) == (0, None, "none")
