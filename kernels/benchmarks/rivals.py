"""The implementations that are timed, each as a function from `Inputs` to the output [B, T, H, D]."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import Inputs
from gca_kernels import gca_attention
from gca_kernels.gca.api import Impl

Attention = Callable[[Inputs], Tensor]


def gca(impl: Impl) -> Attention:
    """This project's operation; the inverse index is made inside unless the inputs bring one."""

    def attention(x: Inputs) -> Tensor:
        return gca_attention(x.q, x.chunk_k, x.chunk_v, x.ids, x.weights, block=x.block, impl=impl, index=x.index)

    return attention


def gather_sdpa(x: Inputs) -> Tensor:
    """K and V copied once per slot, torch's fused attention on each pair of query chunk and slot, the weighted sum."""
    B, T, H, D = x.q.shape
    _, N, C, J, _ = x.chunk_k.shape
    _, Q, K = x.ids.shape
    entry = (x.ids.clamp(min=0) + N * torch.arange(B, device=x.ids.device)[:, None, None]).flatten()
    k, v = (
        table.view(B * N, C * J * D).index_select(0, entry).view(B * Q * K, C, J, D).transpose(1, 2)
        for table in (x.chunk_k, x.chunk_v)
    )
    q = x.q.view(B * Q, 1, x.block, H, D).expand(-1, K, -1, -1, -1).flatten(0, 1).transpose(1, 2)
    slots = F.scaled_dot_product_attention(q, k, v, enable_gqa=J < H).transpose(1, 2).reshape(B * Q, K, -1)
    return (_masked_weights(x).to(slots.dtype)[:, None] @ slots).view(B, T, H, D)


def paper(folder: Path) -> Attention:
    """The path of the paper's code, from a checkout of it: K and V gathered by index, then its Triton kernel.

    Its kernel takes q [B * Q, H, rows, D], K and V [B * Q, J, K, C, D] and weights [B * Q, K], all contiguous, and
    rounds to bf16 inside. The gather and the layouts are those of its model's training step; the model gathers once
    for the layers of a retrieval group, here every call does.

    Raises FileNotFoundError when `folder` has no ltriton/gca.py.
    """
    path = folder / "ltriton" / "gca.py"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a checkout of the paper's code")
    spec = spec_from_file_location("paper_gca", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def attention(x: Inputs) -> Tensor:
        if x.q.dtype != torch.bfloat16:
            raise ValueError(f"the paper's kernel takes bf16, not {x.q.dtype}")
        B, T, H, D = x.q.shape
        Q, K = x.ids.shape[1:]
        batch, entry = torch.arange(B, device=x.ids.device)[:, None], x.ids.clamp(min=0).flatten(1)

        def gather(table: Tensor) -> Tensor:
            picked = table.flatten(3)[batch, entry]  # [B, Q * K, C, J * D]
            return picked.view(B * Q, K, *table.shape[2:]).permute(0, 3, 1, 2, 4).contiguous()

        q = x.q.view(B * Q, x.block, H, D).transpose(1, 2).contiguous()
        out = module.attention(q, gather(x.chunk_k), gather(x.chunk_v), _masked_weights(x), D**-0.5, 0.0)
        return out.transpose(1, 2).reshape(B, T, H, D)

    return attention


def _masked_weights(x: Inputs) -> Tensor:
    """[B * Q, K], 0 in empty slots."""
    return torch.where(x.ids >= 0, x.weights, 0.0).flatten(0, 1)
