"""What the weights of a batch did, for people to watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Report(NamedTuple):
    """One batch's numbers, or their running mean (rate 0.01): ``absgd_report``."""

    count: float  # type: ignore[assignment]  # B, samples that counted
    mean_loss: float  # (1/B) Σ w_i L_i, what plain SGD would report
    weighted_loss: float  # (1/B) Σ w_i p_i L_i, before guards and any factor of DDP
    objective: float  # λ log s, the estimate of F_λ = λ log mean exp(L/λ)
    max_weight: float  # max p_i, before guards
    effective_samples: float  # B (Σ w_i p_i)²/(Σ w_i Σ w_i p_i²), as a rule for λ measures it
    batches: float  # how many batches went in
    kappa: float  # κ that keep_loss multiplied the coefficients by; 1 without it
    capped: float  # share of the samples (of this process) whose weight is max_weight


class Stats:
    """Numbers of the last batch (``.last``) and their running mean (``.mean``), each a `Report`.

    The numbers are those of the global batch, NaN before the first. They stay on the device until
    one is read. ``dict(stats)`` is flat, for a logger: the running mean by name, and ``"lam"``;
    ``print(stats)`` is a small table.
    """

    def __init__(self, reports: Tensor, lam: Tensor) -> None:
        self._reports = reports
        self._lam = lam

    @property
    def last(self) -> Report:
        return Report(*self._reports[0].tolist())

    @property
    def mean(self) -> Report:
        return Report(*self._reports[1].tolist())

    @property
    def lam(self) -> float:
        return float(self._lam)

    def keys(self) -> Iterator[str]:
        return iter(("lam", *Report._fields))

    def __getitem__(self, name: str) -> float:
        if name == "lam":
            return self.lam
        if name not in Report._fields:
            raise KeyError(f"{name!r}: stats have lam, {', '.join(Report._fields)}")
        return float(getattr(self.mean, name))

    def __str__(self) -> str:
        last, mean = self.last, self.mean
        rows = [f"{'lam':<18}{self.lam:>12.5g}", f"{'':<18}{'last batch':>12}{'mean':>12}"]
        rows += [
            f"{name:<18}{getattr(last, name):>12.5g}{getattr(mean, name):>12.5g}"
            for name in Report._fields
        ]
        return "\n".join(rows)
