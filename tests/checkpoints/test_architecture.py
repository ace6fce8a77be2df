"""Weights are refused for another architecture, with the differences."""

import pytest

from gca_lit.attention import GroupedCrossAttention
from gca_lit.checkpoints.architecture import architecture, refuse_other_architecture
from gca_lit.model import DecoderConfig


def of(**settings) -> dict:
    return architecture(GroupedCrossAttention(**settings), DecoderConfig(), 257)


SWITCHES = pytest.mark.parametrize("switch", ["smear_keys", "recency"])


@SWITCHES
@pytest.mark.parametrize("saved", [False, True])
def test_switches_belong_to_the_weights(switch: str, saved: bool) -> None:
    refuse_other_architecture(of(**{switch: saved}), of(**{switch: saved}))
    with pytest.raises(ValueError, match=f"{switch}: {saved} in the checkpoint, {not saved} in this run$"):
        refuse_other_architecture(of(**{switch: saved}), of(**{switch: not saved}))


def test_free_settings_may_differ() -> None:
    refuse_other_architecture(of(), of(window=256, top_k=4, noise="none", impl="reference"))


@SWITCHES
def test_a_switch_that_a_checkpoint_does_not_name_is_off(switch: str) -> None:
    older = {key: value for key, value in of().items() if key != f"attention.{switch}"}
    refuse_other_architecture(older, of())
    with pytest.raises(ValueError, match=f"{switch}: nothing in the checkpoint, True in this run$"):
        refuse_other_architecture(older, of(**{switch: True}))
