"""What torchtitan does with optimizers: before 0.3 here, from 0.3 on by its own container.

torchtitan brings many packages and is not installed for the tests. Where it is, they run with it.
"""

from __future__ import annotations

import functools
import importlib.util

from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import wpadamw
from wpadamw.integrations.fsdp import hand_over

HAS_TORCHTITAN = importlib.util.find_spec("torchtitan") is not None


class OptimizersContainer(Optimizer, Stateful):
    """One optimizer for each part of a model, as in torchtitan 0.2."""

    def __init__(self, model_parts, optimizer_cls, optimizer_kwargs):
        self.model_parts, self.optimizers, all_params = model_parts, [], []
        for model in model_parts:
            params = [param for param in model.parameters() if param.requires_grad]
            self.optimizers.append(optimizer_cls(params, **optimizer_kwargs))
            all_params += params
        Optimizer.__init__(self, all_params, optimizer_kwargs)  # for its hooks

    def __iter__(self):
        return iter(self.optimizers)

    def step(self, *args, **kwargs):
        for optimizer in self.optimizers:
            optimizer.step(*args, **kwargs)

    def zero_grad(self, *args, **kwargs):
        for optimizer in self.optimizers:
            optimizer.zero_grad(*args, **kwargs)

    def state_dict(self):
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        get = functools.partial(get_optimizer_state_dict, options=self._options())
        parts = map(get, self.model_parts, self.optimizers)
        return {name: value for part in parts for name, value in part.items()}

    def load_state_dict(self, state_dict):
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        put = functools.partial(
            set_optimizer_state_dict, optim_state_dict=state_dict, options=self._options()
        )
        for model, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            put(model, optimizer)

    @staticmethod
    def _options():
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        return StateDictOptions(flatten_optimizer_state_dict=True)

    def init_cache_state_dict(self):
        """For torchft's subclass."""


class LRSchedulersContainer(Stateful):
    """One schedule for each optimizer, all alike."""

    def __init__(self, optimizers, lr_lambda):
        self.schedulers = [LambdaLR(optimizer, lr_lambda) for optimizer in optimizers]

    def step(self):
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self):
        return self.schedulers[0].state_dict()

    def load_state_dict(self, state_dict):
        for scheduler in self.schedulers:
            scheduler.load_state_dict(dict(state_dict))


class ModelWrapper(Stateful):
    """The parts of a model as one dict."""

    def __init__(self, model_parts):
        self.model = model_parts

    def state_dict(self):
        return {name: value for part in self.model for name, value in part.state_dict().items()}

    def load_state_dict(self, state_dict):
        for part in self.model:
            part.load_state_dict(state_dict, strict=False)


def before_0_3(model_parts, lr_lambda, **options):
    """Optimizers, schedules and wrapper of a model, handed over."""
    optimizers = OptimizersContainer(model_parts, wpadamw.WPAdamW, options)
    for part, optimizer in zip(model_parts, optimizers, strict=True):
        hand_over(part, optimizer)
    return optimizers, LRSchedulersContainer(optimizers, lr_lambda), ModelWrapper(model_parts)


def of_0_3(model_parts, lr_lambda, **options):
    """The same by torchtitan's own, with the recipe of docs/sharded.md."""
    from dataclasses import dataclass

    from torchtitan.components import optimizer as titan
    from torchtitan.components.checkpointer import ModelWrapper

    class PredictingOptimizers(titan.OptimizersContainer):
        @dataclass(kw_only=True, slots=True)
        class Config(titan.OptimizersContainer.Config):
            pass

        @staticmethod
        def _resolve_optimizer_factory(name):
            known = titan.OptimizersContainer._resolve_optimizer_factory
            return wpadamw.WPAdamW if name == "WPAdamW" else known(name)

        def __init__(self, config, *, model_parts):
            super().__init__(config, model_parts=model_parts)
            for part, optimizer in zip(model_parts, self.optimizers, strict=True):
                hand_over(part, optimizer)

    group = titan.ParamGroupConfig(pattern=".*", optimizer_name="WPAdamW", optimizer_kwargs=options)
    config = PredictingOptimizers.Config(param_groups=[group])
    optimizers = config.build(model_parts=model_parts)
    schedules = titan.LRSchedulersContainer(optimizers, lr_lambda)
    return optimizers, schedules, ModelWrapper(model_parts)


MAKERS = [before_0_3, *([of_0_3] if HAS_TORCHTITAN else [])]
