"""Training only the upper layers in stage two, as the paper does on its large data sets."""

from __future__ import annotations

import functools

from torch import nn

__all__ = ["freeze_except", "unfreeze"]

_FROZEN = "_absgd_frozen"  # on the model: the names of the parameters that freeze_except froze


def _keep_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for ``module.train``: the module stays in eval mode whatever ``mode`` is."""
    module.training = False
    return module


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _keeps_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def freeze_except(model: nn.Module, *names: str) -> list[nn.Parameter]:
    """Freezes all of ``model`` but the modules called ``names`` and what lies under them.

    A frozen parameter has ``requires_grad`` False and no ``.grad``. A frozen batch norm (any module
    with running statistics) normalises by its running statistics and leaves them alone, also after
    ``model.train()``. ``state_dict`` is unaffected; copies of the model are frozen too. Freezing
    again replaces what was frozen before; :func:`unfreeze` undoes it.

        trainable = freeze_except(model, "layer4", "fc")
        opt = ABSGD(trainable, lr=0.01, lam=1.0)

    Args:
        model: the network.
        names: names of modules as ``model.named_modules()`` gives them ("layer4", "layer4.2").

    Returns:
        The parameters that remain trainable, in the order of ``model.parameters()``. One that had
        ``requires_grad`` False of itself is left so, and is not among them.

    Raises:
        ValueError: no name, or one that is no module of ``model`` with parameters; nothing is
            changed then.
    """
    available = [
        name
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    ]
    if not names:
        raise ValueError(f"names must name at least one module; available: {_short(available)}")
    for name in names:
        if name not in available:
            raise ValueError(f"Invalid name: {name!r}; available: {_short(available)}")

    unfreeze(model)
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not _is_under(name, names):
            parameter.requires_grad_(False)
            parameter.grad = None
            frozen.append(name)
    for name, module in model.named_modules():
        if _keeps_statistics(module) and not _is_under(name, names):
            module.train = functools.partial(_keep_in_eval, module)
            module.train()
    setattr(model, _FROZEN, frozen)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def unfreeze(model: nn.Module) -> None:
    """Undoes :func:`freeze_except`; does nothing to a model that it did not freeze."""
    frozen = model.__dict__.pop(_FROZEN, ())
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(True)
    for module in model.modules():
        train = module.__dict__.get("train")
        if isinstance(train, functools.partial) and train.func is _keep_in_eval:
            del module.__dict__["train"]
            module.train(model.training)


def _short(names: list[str]) -> str:
    """The upper two levels of the names: enough to choose from in the deepest network."""
    return ", ".join(name for name in names if name.count(".") < 2)
