"""Chunks fetched for a few rows: tables in the order of the slots, and entries that index them."""

import torch

from gca_lit.memory import Selection, both, fetch, in_one_table
from gca_lit.model.carried import Carried, together

KEPT = torch.randn(2, 20, 3, 1, 4, generator=torch.Generator().manual_seed(0))


def read(ids):
    rows = torch.arange(len(ids))[:, None]
    return KEPT[rows, ids], -KEPT[rows, ids]


def entry(*ids):
    weights = torch.arange(1.0, 1 + 2 * len(ids)).view(2, 1, len(ids))
    return Selection(torch.tensor(ids).expand(2, 1, -1), weights)


def served(table, slots):
    """The chunks of each entry and slot, zeros where one is empty."""
    picked = table.k[torch.arange(2)[:, None, None], slots.ids.clamp(min=0)]
    return picked * (slots.ids >= 0)[..., None, None, None]


def test_a_table_holds_what_an_entry_names_in_its_order():
    table, slots = fetch(entry(7, 2, -1, 2), read)
    assert slots.ids.tolist() == [[[0, 1, -1, 3]]] * 2 and torch.equal(slots.weights, entry(7, 2, -1, 2).weights)
    assert torch.equal(table.k[:, [0, 1, 3]], KEPT[:, [7, 2, 2]]) and torch.equal(table.v, -table.k)


def test_two_tables_serve_as_one_what_each_served():
    first, second = fetch(entry(7, -1, 2), read), fetch(entry(3, 7, -1), read)
    table, slots = in_one_table(first, second)
    assert table.k.shape[1] == 6 and slots.ids.tolist() == [[[0, -1, 2], [3, 4, -1]]] * 2
    assert torch.equal(served(table, slots), torch.cat((served(*first), served(*second)), 1))
    assert torch.equal(slots.weights, both(entry(7, -1, 2), entry(3, 7, -1)).weights)


def test_groups_together_are_each_again():
    for fetched in (False, True):
        groups = [Carried(one, fetch(one, read) if fetched else None) for one in (entry(7, 2), entry(3, -1))]
        for one, again in zip(groups, together(groups).by_group(), strict=True):
            torch.testing.assert_close(tuple(again.selection), tuple(one.selection), rtol=0, atol=0)
            assert bool(again.fetched) == fetched
            if fetched:
                assert torch.equal(served(*again.fetched), served(*one.fetched))
