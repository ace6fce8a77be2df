"""Inputs for grouped cross attention, its output with all gradients, and how exact they must be."""

import torch

from gca_kernels import gca_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()  # the interpreter has no bf16
LEAVES = ("q", "chunk_k", "chunk_v", "chunk_weights")


def inputs(
    *, B=2, R=7, H=4, J=2, D=32, N=5, C=8, K=3, block=4, start=0, Q=None, dtype=torch.float32, device=DEVICE, seed=0
):
    """The arguments of gca_attention; ids lie in [-1, N), so some slots are empty and some repeat."""
    g = torch.Generator().manual_seed(seed)
    Q = -(-(start + R) // block) if Q is None else Q

    def normal(*shape):
        return torch.randn(shape, generator=g).to(device, dtype)

    return {
        "q": normal(B, R, H, D),
        "chunk_k": normal(B, N, C, J, D),
        "chunk_v": normal(B, N, C, J, D),
        "chunk_ids": torch.randint(-1, N, (B, Q, K), generator=g).to(device),
        "chunk_weights": torch.rand(B, Q, K, generator=g).to(device),
        "block": block,
        "start": start,
    }


def output_gradient(arguments, seed=1):
    q = arguments["q"]
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(seed)).to(q.device, q.dtype)


def results(arguments, grad=None, dtype=None, **settings):
    """The output and the gradients of q, chunk_k, chunk_v and chunk_weights by name; all inputs in `dtype` if given."""
    grad = output_gradient(arguments) if grad is None else grad
    leaves = {name: arguments[name].detach().to(dtype or arguments[name].dtype).requires_grad_() for name in LEAVES}
    out = gca_attention(**(arguments | leaves | settings))
    assert out.shape == arguments["q"].shape and out.dtype == leaves["q"].dtype
    gradients = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return {"out": out.detach()} | dict(zip(LEAVES, gradients, strict=True))


def error(x, exact):
    """||x - exact|| / ||exact||; where `exact` is all zero, `x` must be, too."""
    assert x.shape == exact.shape
    if not exact.any():
        return float("inf") if x.any() else 0.0
    largest = exact.abs().max()  # the square of something tiny is zero
    return ((x.double() - exact) / largest).norm().item() / (exact / largest).norm().item()


def floor(dtype, height=0.0):
    """Errors that plain torch may undercut.

    A few roundings of fp32, since exp, log and the division are not exact; in half precision the root mean square of
    the one rounding of a stored result. Beside it the log-sum-exp that the backward pass starts from: stored in fp32,
    it is rounded in proportion to the `height` of the scores, and so are the scores themselves.
    """
    eps, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    return (8 * single if dtype == torch.float32 else eps / 4) + single * height


def assert_as_exact_as_reference(arguments, height=0.0, **settings):
    """Triton is at most twice as far from fp64 as plain torch in the same dtype, for the output and all gradients."""
    exact = results(arguments, dtype=torch.float64, impl="reference", **settings)
    plain = results(arguments, impl="reference", **settings)
    ours = results(arguments, impl="triton", **settings)
    for name, x in ours.items():
        bound = 2 * error(plain[name], exact[name]) + floor(arguments["q"].dtype, height)
        assert error(x, exact[name]) <= bound, f"{name}: {error(x, exact[name]):.2e} > {bound:.2e}"
    return ours


def assert_same(one, other):
    """Bit for bit, NaN nowhere."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
