"""How far training is: in blocks, in optimizer steps and in row lengths, with a state to go on from."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gca_lit.data.curriculum import LengthRule, Switch, check_length, check_stages, length_at
from gca_lit.data.stream import HORIZON, BlockStream

Stages = list[tuple[int, int]]  # (optimizer step, row length that holds from there on)


def known_stages(stages: Stages | None, growth: LengthRule | None, train_length: int) -> Stages:
    """The row lengths that the settings fix. Raises ValueError when they do not fit each other or `train_length`."""
    if stages is not None and growth is not None:
        raise ValueError("stages and growth both decide the row length: give one of them")
    if growth is not None:
        check_length(growth.start, train_length, "data.growth.start")
        return [(0, growth.start)]
    if stages is not None:
        check_stages(stages, train_length)
        return [(step, length) for step, length in stages]
    return [(0, train_length)]


class Pace(NamedTuple):
    """batch: blocks in a global batch. accumulate: global batches in an optimizer step."""

    batch: int
    accumulate: int

    @property
    def step(self) -> int:
        """Blocks in an optimizer step."""
        return self.batch * self.accumulate


class Progress:
    """How far training is in a stream of blocks, and which row lengths come.

    Args:
        stream: The training blocks.
        stages: The row lengths that the settings fix; see `known_stages`.
        growth: What decides on longer rows, if anything does. Its decisions are part of the state, stages are not.
        fingerprint: What must be the same for a state to fit, in plain values by name.
        pace: Tells the pace of training now.
    """

    def __init__(
        self,
        stream: BlockStream,
        stages: Stages,
        growth: LengthRule | None,
        fingerprint: dict[str, Any],
        pace: Callable[[], Pace],
    ) -> None:
        self.stream = stream
        self._stages = stages
        self._growth = growth
        self._fingerprint = fingerprint
        self._pace = pace
        stream.switches = self._switches_ahead()

    @property
    def length(self) -> int:
        """Tokens of a training row now: in the batch handed out last, or in the first one."""
        return length_at(self.stream.switches, max(0, self.stream.position - 1))

    @property
    def switch_pending(self) -> bool:
        """Whether a switch to another row length is still to come."""
        return self.stream.switches[-1][1] != self.length

    def switch(self, length: int) -> int:
        """Make rows `length` tokens long, as soon as no worker can be ahead; the position from which it holds.

        Raises ValueError when `length` does not divide the training length.
        """
        check_length(length, self.stream.train_length, "switch_length")
        position = self.stream.position + HORIZON * self._pace().batch
        self.stream.switch(length, position)
        return position

    @property
    def epoch_steps(self) -> int:
        """Whole optimizer steps that the blocks allow, at least one."""
        return max(1, self.stream.blocks // self._pace().step)

    @property
    def steps_done(self) -> int:
        """Optimizer steps that would consume as many blocks as training has consumed, at the pace of now."""
        return self.stream.position // self._pace().step

    def state_dict(self, step: int) -> dict[str, Any]:
        """Where training was after optimizer step `step`, the last one, in plain values."""
        return {
            "position": self.stream.used,
            "step": step,
            "switches": [list(switch) for switch in self.stream.switches],
            "growth": self._growth.state_dict() if self._growth else None,
            "fingerprint": dict(self._fingerprint),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, at any pace. Raises ValueError for a state with another fingerprint."""
        changed = [
            f"{name} was {state['fingerprint'].get(name)}, now {value}"
            for name, value in self._fingerprint.items()
            if value != state["fingerprint"].get(name)
        ]
        if changed:
            raise ValueError(
                f"the checkpoint cannot go on with this data: {'; '.join(changed)}: name the data.train that it was "
                "trained on, or start anew on other data from its weights, by model.init_from"
            )
        stream = self.stream
        stream.go_on(state["position"], state["step"], state["step"] * self._pace().accumulate)
        stream.switches = [(position, length) for position, length in state["switches"]]
        if self._growth is None:
            passed = [switch for switch in stream.switches if switch[0] < stream.position]
            stream.switches = passed + self._switches_ahead()
        elif state["growth"] is not None:
            self._growth.load_state_dict(state["growth"])

    def _switches_ahead(self) -> list[Switch]:
        """The length that the stages give at the stream's position, and their switches from there on."""
        stream, pace = self.stream, self._pace()
        batches = [(step * pace.accumulate, length) for step, length in self._stages]
        ahead = [(at, length) for at, length in batches if at > stream.batches]
        return [
            (stream.position + (at - stream.batches) * pace.batch, length)
            for at, length in [(stream.batches, length_at(batches, stream.batches)), *ahead]
        ]
