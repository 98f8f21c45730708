"""What the demo says about its rounds and its end, in words and in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dp.accounting.figures import delta_shown, shown_up
from dp.accounting.statements import NoiseKind, PrivacyStatement
from secagg_cli.output import Output

if TYPE_CHECKING:
    from secagg_cli.demo.conductor import RoundRecord


def epsilon_by_mode(statements: Iterable[PrivacyStatement]) -> dict[str, float | None]:
    """The largest unamplified epsilon by kind of noise (``local``, ``device``, ``distributed``);
    None for a kind that is not in use."""
    result: dict[str, float | None] = dict.fromkeys(map(_key, NoiseKind))
    for statement in statements:
        if not statement.amplified:
            key = _key(statement.mode)
            result[key] = max(result[key] or 0.0, statement.epsilon)
    return result


def _key(kind: NoiseKind) -> str:
    return kind.word.removesuffix("-level")


def round_json(record: RoundRecord) -> dict[str, Any]:
    release = record.release
    clip = release.metrics.get("clip")
    return {
        "round": record.number,
        "cohort": release.cohort_size,
        "survivors": release.survivors,
        "dropped": release.dropped,
        "resumed": record.resumed is not None,
        "sum_norm": release.sum_norm,
        "epsilon": epsilon_by_mode(release.privacy),
        "seconds": round(record.seconds, 1),
    } | ({} if clip is None else {"clip": clip})


def print_round(out: Output, record: RoundRecord) -> None:
    facts = round_json(record)
    epsilons = ", ".join(
        f"{mode} {'none' if value is None else shown_up(value, 2)}"
        for mode, value in facts["epsilon"].items()
    )
    resumed = "" if record.resumed is None else f" (device {record.resumed + 1} killed and resumed)"
    norm = "hidden" if facts["sum_norm"] is None else f"{facts['sum_norm']:.4g}"
    clip = f", next clip {facts['clip']:.4g}" if "clip" in facts else ""
    out.say(
        f"round {record.number}: cohort {facts['cohort']}, dropped {facts['dropped']}{resumed}, "
        f"norm of the sum {norm}{clip}, epsilon so far: {epsilons}, {facts['seconds']:.0f} s"
    )


def print_summary(out: Output, result: Mapping[str, Any]) -> None:
    out.say()
    out.say(
        f"held-out loss per token: {result['loss_before']:.3f} before, "
        f"{result['loss_after']:.3f} after"
    )
    answer = result["answer"]
    out.say(f"asked: {answer['prompt']} (held out; the corpus says: {answer['corpus']})")
    out.say(f"  before: {answer['before']}")
    out.say(f"  after:  {answer['after']}")
    for stated in result["privacy"]:
        amplified = "amplified" if stated["amplified"] else "no amplification"
        out.say(
            f"privacy of one {stated['unit']} ({NoiseKind(stated['mode']).word}): epsilon "
            f"{shown_up(stated['epsilon'], 3)} at delta {delta_shown(stated['delta'])}, "
            f"{amplified}, {stated['adjacency']}, against {stated['adversary']} "
            f"({stated['accountant']})"
        )
    if not result["privacy"]:
        out.say("privacy: none; only the masking hides the devices' updates in their sum")
    verdict = "verified" if result["ledger_verified"] else "NOT VERIFIED"
    out.say(f"adapter: {result['adapter']}")
    out.say(f"ledger:  {result['ledger']} ({verdict})")
    out.say(f"report:  {result['report']}")
    out.say(f"{result['seconds']:.0f} s" + _memory(result.get("peak_pss_bytes")))


def _memory(peak: int | None) -> str:
    return "" if peak is None else f", at most {peak / 2**30:.2f} GiB in all processes together"
