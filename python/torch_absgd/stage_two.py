"""Training only the upper layers in stage two, as the paper does on its large data sets."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn

from . import _checks

__all__ = ["freeze_except", "unfreeze"]

_FROZEN = "_absgd_frozen"  # on the model: the names of the parameters that freeze_except froze
_STATISTICS = "_absgd_frozen_statistics"  # on the model: of the modules whose statistics it froze


def freeze_except(model: nn.Module, *names: str) -> list[nn.Parameter]:
    """Freezes all of ``model`` but the modules called ``names`` and what lies under them.

    A frozen parameter has ``requires_grad`` False and no ``.grad``. One that is tied to a parameter
    under ``names`` is that parameter, and trains. A frozen batch norm (any module with running
    statistics) normalises by its running statistics and leaves them alone, also after
    ``model.train()``, and so does what ``SyncBatchNorm.convert_sync_batchnorm(model)`` makes of it.
    ``state_dict`` is unaffected; copies of the model are frozen too. Freezing again replaces what
    was frozen before; :func:`unfreeze` undoes it.

        trainable = freeze_except(model, "layer4", "fc")
        opt = ABSGD(trainable, lr=0.01, lam=1.0)

    Args:
        model: the network.
        names: names of modules as ``model.named_modules()`` gives them ("layer4", "layer4.2"); of a
            module that stands in several places, any of its names.

    Returns:
        The parameters that remain trainable, in the order of ``model.parameters()``. One that had
        ``requires_grad`` False of itself is left so, and is not among them.

    Raises:
        ValueError: no name, or one that is no module of ``model`` with parameters; nothing is
            changed then.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    has_parameters = {
        n: m for n, m in modules.items() if n and next(m.parameters(), None) is not None
    }
    _checks.check_module_names(names, has_parameters)
    kept = [modules[name] for name in names]
    kept_parameters = {id(p) for module in kept for p in module.parameters()}
    kept_modules = {id(m) for module in kept for m in module.modules()}

    unfreeze(model)
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in kept_parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
            frozen.append(name)
    setattr(model, _FROZEN, frozen)
    statistics = [
        name
        for name, module in modules.items()
        if getattr(module, "running_mean", None) is not None and id(module) not in kept_modules
    ]
    setattr(model, _STATISTICS, statistics)
    if statistics:
        model.train = functools.partial(_train_the_rest, model)  # type: ignore[method-assign]
    _keep_in_eval(model.get_submodule(name) for name in statistics)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def unfreeze(model: nn.Module) -> None:
    """Undoes :func:`freeze_except`; does nothing to a model that it did not freeze."""
    frozen = model.__dict__.pop(_FROZEN, ())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(True)
    model.__dict__.pop(_STATISTICS, None)
    for module in model.modules():
        train = module.__dict__.get("train")
        if isinstance(train, functools.partial) and train.func in (_stay_in_eval, _train_the_rest):
            del module.__dict__["train"]
            module.train(model.training)


def _keep_in_eval(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.train = functools.partial(_stay_in_eval, module)  # type: ignore[method-assign]
        module.train()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for ``module.train``: the module stays in eval mode whatever ``mode`` is."""
    module.training = False
    return module


def _train_the_rest(model: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for ``model.train``: by their names, for the modules may have been replaced since
    by others that know nothing of it."""
    type(model).train(model, mode)
    present = dict(model.named_modules(remove_duplicate=False))
    _keep_in_eval(present[name] for name in model.__dict__[_STATISTICS] if name in present)
    return model
