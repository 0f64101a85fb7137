"""λ on the command line: a number, or the text of a rule that finds it.

    --lam 5             --lam -1                 inf: plain SGD
    --lam ess:0.6       --lam ess:0.6:noisy      an EffectiveSampleSize
    --lam kl:0.5        --lam kl:0.5:noisy       a KLRadius
    --lam ess:0.6:rate=1                         a rule's rate, before or after :noisy

Everywhere else, in config.json and in checkpoints too, it stands as the number or as the text.
"""

from __future__ import annotations

import argparse
import math

import torch_absgd as ta

FORMS = "a number, ess:FRACTION or kl:RADIUS; these two with :noisy, with :rate=R"
RULES = {"ess": ta.EffectiveSampleSize, "kl": ta.KLRadius}


def parse(lam: float | str) -> float | ta.EffectiveSampleSize | ta.KLRadius:
    """λ as ABSGD takes it.

    Raises:
        ValueError: ``lam`` has none of the forms above, is 0 or NaN, or the rule's target is out
            of its range.
    """
    kind, *rest = str(lam).split(":")
    if kind not in RULES:
        number = _number(str(lam), lam)
        if number == 0 or math.isnan(number):
            raise ValueError(f"Invalid lambda: {lam!r} (not 0 and not NaN; inf is plain SGD)")
        return number
    target, *flags = rest or [""]
    options: dict[str, float] = {}
    for name, _, value in (flag.partition("=") for flag in flags):
        is_known = (name, bool(value)) in (("noisy", False), ("rate", True))
        if not is_known or name in options:
            raise ValueError(f"Invalid lambda: {lam!r} ({FORMS})")
        options[name] = _number(value, lam) if value else True
    return RULES[kind](_number(target, lam), **options)


def _number(text: str, lam: float | str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"Invalid lambda: {lam!r} ({FORMS})") from None


def argument(text: str) -> float | str:
    """The type of an option: what config.json and a checkpoint can hold, a number or the text."""
    try:
        lam = parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return lam if isinstance(lam, float) else text
