"""How a run ended: what is alarming about it, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
Record = dict[str, Any]


def alarms(results: Results, records: Sequence[Record]) -> list[str]:
    """Why the numbers should not be used, if they should not."""
    found = []
    metrics, counts = results["metrics"], results["class_counts"]
    recalls = [r for r in metrics["per_class"] if r is not None]
    chance = 1 / len(counts)
    deviation = math.sqrt(chance * (1 - chance) / results["evaluated"])
    if metrics["balanced"] <= chance + min(2 * deviation, chance / 4):
        one = sum(r > 0 for r in recalls) <= 1
        found.append(
            f"the balanced accuracy, {100 * metrics['balanced']:.2f} %, is about that of chance"
            + (": every sample is given one class" if one else "")
        )
    share = effective_share(records)
    if share is not None and share * batch_size(results) < 2:
        found.append(
            f"the weights collapsed: {share * batch_size(results):.1f} samples of a batch of "
            f"{batch_size(results)} carried it, in the last epoch"
        )
    return found


def effective_share(records: Sequence[Record]) -> float | None:
    """(Σp)²/(B·Σp²) of the last epoch; 0 where all weights of a batch were 0: λ so small that they
    underflow after a batch with larger losses."""
    found = next((float(r["ess"]) for r in reversed(records) if r["split"] == "train"), None)
    return 0.0 if found is not None and math.isnan(found) else found


def batch_size(results: Results) -> int:
    return min(results["config"]["batch_size"], sum(results["class_counts"]))


def advice(results: Results, records: Sequence[Record]) -> str:
    """One line: the option that is most likely to help."""
    config, metrics = results["config"], results["metrics"]
    share = effective_share(records)
    if share is not None and share * batch_size(results) < 2:
        return "a larger |--lam|, or --lam ess:0.8:rate=1, which keeps 0.8 of each batch effective"
    if config["optimizer"] == "absgd" and share is not None and share > 0.97:
        return (f"a smaller |--lam| than {config['lam']}, or --lam ess:0.8:rate=1: the weights "
                f"were all but equal (effective share {share:.2f})")  # fmt: skip
    groups = [metrics[name] for name in ("many", "medium", "few") if metrics[name] is not None]
    spread = groups and groups[0] - groups[-1] > 0.1
    if config["optimizer"] == "sgd":
        return (
            "--optimizer absgd --lam ess:0.8:rate=1 (add :noisy for noisy labels), from this stage "
            "one or one of its own"
        )
    if spread and config["class_balance"] == "none":
        return "--class-balance drw: rare classes are far below frequent ones"
    if results["split"] == "validation":
        return "other values of --lam, --lr and --weight-decay; then, once, without --validate"
    return "--validate 0.1 with other values of --lam: this choice was not compared with any"
