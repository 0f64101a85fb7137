"""How a run ended: what is alarming about it, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
Record = dict[str, Any]

FOUND = "--lam ess:0.8 --keep-loss"


def alarms(results: Results, records: Sequence[Record]) -> list[str]:
    """Why the numbers should not be used, if they should not."""
    found, metrics = [], results["metrics"]
    if is_chance(results):
        one = sum(r > 0 for r in metrics["per_class"] if r is not None) <= 1
        found.append(
            f"the balanced accuracy, {100 * metrics['balanced']:.2f} %, is about that of chance"
            + (": every sample is given one class" if one else "")
        )
    share, size = effective_share(records), batch_size(results)
    if share is not None and is_collapse(share, size):
        found.append(
            f"the weights collapsed: {share * size:.1f} samples of a batch of {size} carried it, "
            "in the last epoch"
        )
    return found


def is_collapse(share: float, size: int) -> bool:
    """Fewer than two samples of a batch carried it: of a batch of two or fewer this says nothing,
    but that all of its weights were 0."""
    return share == 0 or share * size < 2 < size


def is_chance(results: Results) -> bool:
    chance = 1 / len(results["class_counts"])
    deviation = math.sqrt(chance * (1 - chance) / results["evaluated"])
    return results["metrics"]["balanced"] <= chance + min(2 * deviation, chance / 4)


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
    share, size = effective_share(records), batch_size(results)
    is_absgd = config["optimizer"] == "absgd"
    is_cut = config["stage_two"] >= config["epochs"]
    if is_absgd and config["lam"] != config["lam_start"] and is_cut:
        return "--stage-two below --epochs: stage two, which is at --lam, did not begin"
    if share is not None and (is_collapse(share, size) or (share < 0.3 and is_chance(results))):
        return (f"a larger |--lam|, or {FOUND}, which keeps 0.8 of each batch effective "
                f"(now {share:.2f})")  # fmt: skip
    if is_absgd and share is not None and share > 0.97 and size > 1:
        return (f"a smaller |--lam| than {config['lam']}, or {FOUND}: the weights were all but "
                f"equal (effective share {share:.2f})")  # fmt: skip
    is_plain = config["class_balance"] == "none" and config["method"] in (None, "sgd", "absgd")
    groups = [metrics[name] for name in ("many", "medium", "few") if metrics[name] is not None]
    spread = groups and groups[0] - groups[-1] > 0.1
    if spread and is_plain:
        method = "la-post-absgd" if is_absgd else "la-post"
        return (f"--method {method} (logit adjustment), or --class-balance drw: rare classes are "
                "far below frequent ones")  # fmt: skip
    if is_plain and not is_absgd:
        return "if labels may be wrong: --optimizer absgd --lam ess:0.8:noisy"
    values = "--lam, --lr and --weight-decay" if is_absgd else "--lr and --weight-decay"
    if results["split"] == "validation":
        return f"other values of {values}; then, once, without --validate"
    return f"--validate 0.1 with other values of {values}: these were not compared with any"
