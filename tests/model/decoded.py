"""Decoding for tests, and what a state holds."""

from dataclasses import fields

import torch
from torch.utils._pytree import tree_leaves

from gca_lit.memory import HostStore
from gca_lit.model.pasts import separate


def prompted(model, ids, prompt, store=HostStore):
    state, at = model.new_state(len(ids), store()), 0
    for size, read in prompt:
        state, at = model(ids[:, at : at + size], state, read).state, at + size
    return state, at


def decoded(model, ids, state, at):
    """Hidden states of the tokens from `at` on, the chunks selected for each chunk, and the last state."""
    hidden, picked = [], {}
    for token in range(at, ids.shape[1]):
        step = model(ids[:, token : token + 1], state, "last")
        state = step.state
        hidden.append(step.hidden)
        for number, selection in enumerate(step.selections):
            for j in range(selection.ids.shape[1]):
                picked[number, step.first_chunk + j] = selection.ids[:, j].cpu()
    return torch.cat(hidden, 1), picked, state


def plain(state):
    """What a state holds beside memory and selections, in one form."""
    waiting = torch.cat((state.deferred[:, :0], *state.pending), 1)
    return state.position, tuple(map(tuple, separate(state.pasts))), waiting, state.deferred


def tensors(state):
    return [
        x for field in fields(state) for x in tree_leaves(getattr(state, field.name)) if isinstance(x, torch.Tensor)
    ]
