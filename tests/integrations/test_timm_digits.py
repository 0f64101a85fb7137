"""timm: model, optimizer registry, scheduler and Mixup."""

import timm_digits


def test_the_recipe_learns() -> None:
    assert timm_digits.main(["--epochs", "9"])["overall"] > 0.4
