import pytest

from gca_lit.data.curriculum import LengthRule, check_stages, length_at


def test_length_at() -> None:
    switches = [(0, 8), (10, 16), (30, 64)]
    assert [length_at(switches, position) for position in (0, 9, 10, 29, 30, 10**12)] == [8, 8, 16, 16, 64, 64]


def test_rule_waits_for_every_task() -> None:
    rule = LengthRule(16, check_every=10, threshold={"a": 0.9, "b": 0.5}, window=2)
    assert [step for step in range(31) if rule.due(step)] == [10, 20, 30]
    seen = [(0.9, 0.9), (0.8, 0.9), (1.0, 0.0), (1.0, 0.9), (1.0, 0.9), (1.0, 0.9)]
    assert [rule.observe({"a": a, "b": b}) for a, b in seen] == [False, False, False, False, True, False]
    with pytest.raises(ValueError, match="no entry for task c"):
        rule.observe({"c": 1.0})
    with pytest.raises(ValueError, match="there is no task"):
        rule.observe({})


def test_rule_resumes() -> None:
    rule, resumed = LengthRule(16, window=2), LengthRule(16, window=2)
    assert not rule.observe({"a": 1.0})
    resumed.load_state_dict(rule.state_dict())
    assert resumed.observe({"a": 1.0})


def test_next_length() -> None:
    rule = LengthRule(16)
    assert [rule.next_length(length, 16_384) for length in (16, 8192, 16_384)] == [32, 16_384, None]
    assert [rule.next_length(length, 16_380) for length in (630, 1260)] == [1260, 16_380]


def test_stages_are_checked() -> None:
    check_stages([(0, 8), (5, 64)], 64)
    for stages in ([], [(1, 8)], [(0, 8), (0, 16)]):
        with pytest.raises(ValueError, match="begin at optimizer step 0"):
            check_stages(stages, 64)
    for length in (24, -8, 0):
        with pytest.raises(ValueError, match=rf"data\.stages: length {length} must .* divide train_length 64: change"):
            check_stages([(0, length)], 64)


@pytest.mark.parametrize("threshold", [5, -0.1, {"a": 0.9, "b": 1.1}])
def test_thresholds_are_accuracies(threshold: float | dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"growth\.threshold is an accuracy, 0 to 1, not"):
        LengthRule(16, threshold=threshold)
