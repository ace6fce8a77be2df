"""Weights are refused for another architecture, with the differences."""

import pytest

from gca_lit.attention import GroupedCrossAttention
from gca_lit.checkpoints.architecture import architecture, refuse_other_architecture
from gca_lit.model import DecoderConfig


def of(**settings) -> dict:
    return architecture(GroupedCrossAttention(**settings), DecoderConfig(), 257)


@pytest.mark.parametrize("saved", [False, True])
def test_smeared_keys_belong_to_the_weights(saved: bool) -> None:
    refuse_other_architecture(of(smear_keys=saved), of(smear_keys=saved))
    with pytest.raises(ValueError, match=f"smear_keys: {saved} in the checkpoint, {not saved} in this run$"):
        refuse_other_architecture(of(smear_keys=saved), of(smear_keys=not saved))


def test_free_settings_may_differ() -> None:
    refuse_other_architecture(of(), of(window=256, top_k=4, noise="none", impl="reference"))


def test_a_switch_that_a_checkpoint_does_not_name_is_off() -> None:
    older = {key: value for key, value in of().items() if key != "attention.smear_keys"}
    refuse_other_architecture(older, of())
    with pytest.raises(ValueError, match=r"smear_keys: nothing in the checkpoint, True in this run$"):
        refuse_other_architecture(older, of(smear_keys=True))
