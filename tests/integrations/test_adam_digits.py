"""The plain loop with Adam."""

import adam_digits


def test_the_rare_classes_gain() -> None:
    plain = adam_digits.main(["--lam", "inf", "--epochs", "12"])
    attentional = adam_digits.main(["--lam", "1", "--epochs", "12"])
    assert attentional["rare"] > plain["rare"]
    assert attentional["overall"] > plain["overall"] > 0.2
