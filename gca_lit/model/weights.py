"""Where the weights of a module lie."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Weights:
    """Where the parameters and buffers of a module lie."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._holders: list[dict[str, Any]] = []
        self._held: list[Any] = []
        self._tensors: list[Tensor] = []
        self._divided = False

    def addresses(self, look: bool = True) -> tuple[int, ...] | None:
        """None where they are divided among processes. Asked for every token: no loop of it is in Python.

        look: whether others may be in their place by now. To look takes most of the time.
        """
        if look or not self._held:
            held = list(chain.from_iterable(map(dict.values, self._holders)))
            if not held or len(held) != len(self._held) or not all(map(is_, held, self._held)):
                self._look()
        return None if self._divided else tuple(map(Tensor.data_ptr, self._tensors))

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module, "_holders": [], "_held": [], "_tensors": [], "_divided": False}

    def _look(self) -> None:
        every = [held for m in self._module.modules() for held in (m._parameters, m._buffers, m._modules)]
        self._holders = [held for held in every if held]
        self._held = [one for holder in self._holders for one in holder.values()]
        self._tensors = [one for one in self._held if isinstance(one, Tensor)]
        self._divided = any(isinstance(weight, DTensor) for weight in self._tensors)
