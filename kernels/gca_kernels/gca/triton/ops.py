"""The kernels as torch.library operations, so that autograd and torch.compile know them.

They are defined by schema and not by `torch.library.custom_op`, whose wrappers cost more time than a small launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gca_kernels.gca.index import GCAIndex
from gca_kernels.gca.triton import backward as backward_kernels
from gca_kernels.gca.triton.forward import forward as forward_kernel
from gca_kernels.gca.triton.launch import Shape

_SELECTION = "Tensor ids, Tensor weights"
_INDEX = "Tensor? entries, Tensor? runs, Tensor? cuts"
_library = torch.library.Library("gca_kernels", "DEF")
_library.define(
    f"forward(Tensor q, Tensor k, Tensor v, {_SELECTION}, {_INDEX}, SymInt block, SymInt start, float scale, "
    "float offset) -> (Tensor, Tensor)"
)
_library.define(
    f"backward(Tensor grad, Tensor q, Tensor k, Tensor v, {_SELECTION}, Tensor lse, {_INDEX}, SymInt block, "
    "SymInt start, float scale) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor,
    entries: Tensor | None, runs: Tensor | None, cuts: Tensor | None,
    block: int, start: int, scale: float, offset: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-> (output [B, R, H, D], log-sum-exp of each pair and slot); the index waits for the backward pass."""
    return forward_kernel(q, k, v, ids.contiguous(), weights.contiguous(), block, start, scale, offset)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, lse: Tensor,
    entries: Tensor | None, runs: Tensor | None, cuts: Tensor | None, block: int, start: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> gradients of q, k, v and the weights."""
    index = None
    if entries is not None and runs is not None and cuts is not None:
        index = GCAIndex(entries.contiguous(), runs.contiguous(), cuts.contiguous())
    return backward_kernels.backward(
        grad.contiguous(), q, k, v, ids.contiguous(), weights.contiguous(), lse, index, block, start, scale
    )


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    packed = Shape.of(q, k, ids, *rest[4:6]).packed
    return q.new_empty(q.shape), q.new_empty(packed, dtype=torch.float32)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Any:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, weights))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.gca_kernels.forward.default(*arguments)
        q, k, v, ids, weights, *index, ctx.block, ctx.start, ctx.scale, _ = arguments
        ctx.save_for_backward(q, k, v, ids, weights, lse, *index)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)  # or zeros are made for the gradient of lse
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # in grad mode somebody may differentiate the gradients: they must not look like constants
        gradients = _Gradients.apply if torch.is_grad_enabled() else torch.ops.gca_kernels.backward.default
        grad_q, grad_k, grad_v, grad_weights = gradients(grads[0], *ctx.saved_tensors, ctx.block, ctx.start, ctx.scale)
        return grad_q, grad_k, grad_v, None, grad_weights, *(None,) * 7


class _Gradients(torch.autograd.Function):
    """The backward pass, once: its own derivative is an error."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return torch.ops.gca_kernels.backward.default(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        raise RuntimeError('impl="triton" has no second derivative: use impl="reference"')


for _device in ("CUDA", "CPU"):  # on the CPU the kernels run in Triton's interpreter
    _library.impl("forward", _forward, _device)
    _library.impl("backward", _backward, _device)
_library.impl("forward", lambda *arguments: _Attention.apply(*arguments), "Autograd")
torch.library.register_fake("gca_kernels::forward", _fake_forward, lib=_library)
torch.library.register_fake("gca_kernels::backward", _fake_backward, lib=_library)


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`_forward` with its gradients: as the operation where something looks at it, else directly, which is faster."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return torch.ops.gca_kernels.forward.default(*arguments)
    return _Attention.apply(*arguments)
