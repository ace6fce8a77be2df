"""What holds for every needle task, in evaluation episodes and in dense rows."""

import re
from itertools import pairwise

import pytest
import torch

from gca_lit.tasks import MultiHop, MultiKey, MultiQuery, SingleNeedle, VariableTracking
from tests.tasks.oracle import (
    QUESTION,
    TASKS,
    C,
    Letters,
    answers,
    decode_wide,
    digest,
    encode,
    encode_wide,
    facts,
    read,
    solve,
)

LETTERS = Letters()
every_task = pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.name)
every_placement = pytest.mark.parametrize("align", [C, 24, None])


def lengths(task):
    shortest = task.min_length()
    return [shortest, shortest + 1, shortest + 17, 257, 384, 1001]


@every_task
@every_placement
@pytest.mark.parametrize("tokenizer", [encode, encode_wide])
def test_episode_is_exact_and_solvable(kind, align, tokenizer):
    task = kind().bind(0, tokenizer, align)
    for length in lengths(task):
        for index in range(4):
            episode = task.episode(length, index, LETTERS)
            start, stop = episode.answer
            assert episode.tokens.shape == episode.targets.shape == (length,)
            assert episode.tokens.dtype == episode.targets.dtype == torch.int64
            assert answers(episode) == [episode.answer]
            assert torch.equal(episode.targets[start - 1 : stop - 1], episode.tokens[start:stop])
            assert read(episode.tokens[start:stop]) == solve(task, read(episode.tokens[:start]))


@every_task
@every_placement
@pytest.mark.parametrize("tokenizer", [encode, encode_wide])
def test_row_is_exact_dense_and_solvable(kind, align, tokenizer):
    task = kind().bind(0, tokenizer, align)
    for length in lengths(task):
        for index in range(4):
            row = task.row(length, index, LETTERS.take(index, length))
            spans = answers(row)
            assert row.tokens.shape == row.targets.shape == (length,)
            assert spans and spans[-1] == row.answer
            for start, stop in spans:
                assert torch.equal(row.targets[start - 1 : stop - 1], row.tokens[start:stop])
                assert read(row.tokens[start:stop]) == solve(task, read(row.tokens[:start]))
    asked = len(spans)
    assert asked >= 1001 // 2 // (align * (task.gap + 2) if align else 4 * (task.sizes.question + task.sizes.answer))


@every_task
def test_haystack_flows_around_what_is_inserted(kind):
    task = kind().bind(0, encode, C)
    for episode in (task.episode(500, 3, LETTERS), task.row(500, 3, LETTERS.take(3, 500))):
        kept = "".join(re.findall("[a-z]", re.sub("passkey", "", read(episode.tokens))))
        assert kept and read(LETTERS.take(3, 500)).startswith(kept)


@every_task
@every_placement
def test_spans(kind, align):
    task = kind().bind(1, encode, align)
    for index in range(20):
        episode = task.episode(300, index, LETTERS)
        text = read(episode.tokens)
        answer = text[slice(*episode.answer)]
        shown = [text[slice(*span)] for span in episode.needles]
        assert len(episode.needles) == (2 if kind is MultiQuery else task.hops)
        assert (",".join(shown) == answer) if kind in (MultiQuery, VariableTracking) else (shown[-1] == answer)
        key = episode.asked - (0 if kind is SingleNeedle else -1)
        assert text[key] == "?" and text.count("?") == 1
        needle_end = text.index("|", episode.needles[0][1]) + 1
        assert episode.distance == episode.answer[0] - needle_end >= 0


@every_task
@every_placement
def test_depth(kind, align):
    task = kind().bind(0, encode, align)
    for index in range(10):
        first, middle, last = (task.episode(400, index, LETTERS, depth) for depth in (0.0, 0.5, 1.0))
        assert (first.depth, last.depth) == (0.0, 1.0) and middle.depth == pytest.approx(0.5, abs=0.01)
        opening = read(first.tokens).index("|", 1) + 1
        assert read(first.tokens)[0] == "|" and first.needles[0][1] <= opening
        text = read(last.tokens)
        question = text.rindex("|", 0, text.index("?"))
        assert text[question - 1] == "|" and question - 1 - last.needles[0][1] < 8
        assert sorted(facts(task, text)) == sorted(facts(task, read(first.tokens)))
    drawn = [task.episode(400, index, LETTERS).depth for index in range(60)]
    assert min(drawn) < 0.1 and max(drawn) > 0.9 and len(set(drawn)) > 30


@every_task
def test_needles_straddle_chunk_borders(kind):
    task = kind().bind(0, encode, C)
    spans = [span for index in range(40) for span in task.episode(400, index, LETTERS).needles]
    assert any(start // C != (stop - 1) // C for start, stop in spans)


@every_task
@pytest.mark.parametrize("length", [256, 263, 999])
def test_question_ends_on_a_chunk_border_and_the_answer_opens_the_last_chunk_with_room(kind, length):
    task = kind().bind(0, encode, C)
    episode = task.episode(length, 0, LETTERS)
    text = read(episode.tokens)
    end, prompt = text.index("?") + 1, episode.answer[0] - 1
    assert end % C == 0 and prompt % C == 0 and text[prompt] == "="
    assert prompt - end == (task.hops - 1) * C
    assert prompt + C + task.sizes.answer > length >= episode.answer[1]


@every_task
def test_question_of_a_row_ends_on_a_chunk_border(kind):
    task = kind().bind(0, encode, C)
    row = task.row(512, 0, LETTERS.take(0, 512))
    ends = [match.end() for match in re.finditer(QUESTION, read(row.tokens))]
    prompts = [start - 1 for start, _ in answers(row)]
    assert all(end % C == 0 and prompt == end + task.gap * C for end, prompt in zip(ends, prompts, strict=True))
    assert ends[0] >= 512 // 2 - C * (task.gap + 1) and prompts[-1] == 512 - C


@every_task
def test_question_at_the_end(kind):
    episode = kind().bind(0, encode, None).episode(333, 0, LETTERS)
    assert episode.answer[1] == 333
    assert re.search(QUESTION + r"=[\w,]+$", read(episode.tokens))


@pytest.mark.parametrize("kind", [MultiHop, VariableTracking])
def test_own_landmark_needs_no_gap(kind):
    task = kind(landmark_reads="own").bind(0, encode, C)
    for episode in (task.episode(320, 0, LETTERS), task.row(320, 0, LETTERS.take(0, 320))):
        assert read(episode.tokens)[episode.answer[0] - 2] == "?"


@every_task
@every_placement
def test_distractors_differ_and_the_value_does_not_leak(kind, align):
    task = kind().bind(0, encode, align)
    for index in range(20):
        episode = task.episode(400, index, LETTERS)
        text = read(episode.tokens)
        keys, values = zip(*facts(task, text), strict=True)
        assert len(set(keys)) == len(keys) == task.chains * task.hops and len(set(values)) == len(values)
        for piece in text[slice(*episode.answer)].split(","):
            before = text[: episode.answer[0]]
            assert before.count(piece) == (1 if piece.isdigit() else 1 + (piece in values))


@every_task
@every_placement
def test_rows_keep_needles_away_but_for_a_few(kind, align):
    task = kind().bind(0, encode, align)
    length, margin = 1024, 3 * (align or 64)
    near, first_distances = 0, []
    for index in range(150):
        row = task.row(length, index, LETTERS.take(index, length))
        text = read(row.tokens)
        question = next(re.finditer(QUESTION, text)).start()
        last_needle = text.rindex("|", 0, question) + 1
        near += question - last_needle < margin
        first_distances.append(question - last_needle)
    assert 3 <= near <= 35
    assert min(first_distances) < margin / 2


def test_near_rows_reach_into_the_window():
    task = SingleNeedle(near=1.0).bind(0, encode, C)
    distances = []
    for index in range(800):
        text = read(task.row(512, index, LETTERS.take(index, 512)).tokens)
        distances.append(text.index("|passkey?") - re.search(r"\|passkey=\d+\|", text).end())
    assert set(range(0, 3 * C - 15)) <= set(distances) and max(distances) <= 3 * C - 15
    assert sum(distance <= C - 15 for distance in distances) > 400


def test_needles_of_a_row_grow_with_it_or_are_fixed():
    def needles(task, length):
        return len(facts(task, read(task.bind(0, encode, C).row(length, 0, LETTERS.take(0, length)).tokens)))

    assert [needles(MultiKey(), length) for length in (128, 512, 1024, 16384)] == [2, 8, 16, 32]
    assert needles(MultiKey(needles_per_row=5), 512) == 5
    assert needles(MultiHop(), 512) == 8 and needles(VariableTracking(), 1024) == 15


@pytest.mark.parametrize("kind", [MultiKey, MultiQuery, MultiHop, VariableTracking])
@pytest.mark.parametrize("digits", [5, None])
def test_names_and_values_can_be_words(kind, digits):
    """The last question asks for words that are in needles, each with a space before it, and all are different."""
    task = kind(key_letters=None, digits=digits).bind(0, encode, 63)
    for index in range(20):
        text = read(task.episode(task.min_length(), index, LETTERS).tokens)
        names = re.findall(r"\|( [a-z]{4,9})=", text)
        assert len({*names}) == len(names) == task.chains * task.hops
        start, stop = task.episode(task.min_length(), index, LETTERS).answer
        asked = re.findall(r"\|([^|]*)\?", text)[-1]
        named = re.findall(" [a-z]+", asked + text[start:stop])
        values = re.findall(r"=( [a-z]{4,9})\|", text)
        assert named and set(named) <= {*names, *values}
        assert len({*names, *values}) == task.chains * (task.hops + (digits is None))
    with pytest.raises(ValueError, match="there are 2048"):
        MultiKey(key_letters=None, keys=2049).bind(0, encode, 63).episode(10**6, 0, LETTERS)


def test_every_spaces_the_questions():
    row = MultiKey(every=4).bind(0, encode, C).row(1024, 0, LETTERS.take(0, 1024))
    starts = [start for start, _ in answers(row)]
    assert {after - before for before, after in pairwise(starts)} == {4 * C}


def test_a_question_may_be_longer_than_a_chunk():
    task = MultiKey(question="|please tell the number that goes with {key}?").bind(0, encode, C)
    episode, row = task.episode(400, 0, LETTERS), task.row(400, 0, LETTERS.take(0, 400))
    assert (episode.answer[0] - 1) % C == 0 and len(answers(row)) == 5


@every_task
@every_placement
def test_reproducible_and_different_by_seed_index_and_use(kind, align):
    def drawn(seed, index):
        task = kind().bind(seed, encode, align)
        return [digest(task.episode(300, index, LETTERS)), digest(task.row(300, index, LETTERS.take(index, 300)))]

    state = torch.random.get_rng_state()
    assert drawn(0, 0) == drawn(0, 0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len({*drawn(0, 0), *drawn(1, 0), *drawn(0, 1), *drawn(1, 1)}) == 8


PINNED = {
    "single_needle": "002ad6e89a9f 6d95e5913a05 a7291f8e4960 b629258f5112",
    "multi_key": "31ce381028f7 22990aae0f5c 8306a4df9aa3 b63645a27853",
    "multi_query": "a7327024104a 416ac4f17852 868b17043f75 7f1c1ad39a7a",
    "multi_hop": "057c99ebd58a 0f7d280a808e f650358bc64b cd552e04e7d9",
    "variable_tracking": "42c3c81c2ac1 609180fd82f6 f6532086d60b 2843be84c967",
}


@every_task
def test_pinned_on_every_machine(kind):
    chunk, end = kind().bind(7, encode, C), kind().bind(7, encode, None)
    digests = [digest(task.episode(321, 2, LETTERS, 0.3)) for task in (chunk, end)]
    digests += [digest(task.row(321, 2, LETTERS.take(2, 321))) for task in (chunk, end)]
    assert " ".join(digests) == PINNED[kind.name]


@every_task
@every_placement
def test_too_short_names_the_shortest_length(kind, align):
    task = kind().bind(0, encode, align)
    shortest = task.min_length()
    for call in (lambda n: task.episode(n, 0, LETTERS), lambda n: task.row(n, 0, LETTERS.take(0, n))):
        call(shortest)
        with pytest.raises(ValueError, match=f"{task.name}.*{shortest}"):
            call(shortest - 1)


@every_task
@every_placement
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.77, 1.0])
def test_the_shortest_length_fits_whatever_is_drawn(kind, align, depth):
    task = kind().bind(0, encode_wide, align)
    for index in range(40):
        task.episode(task.min_length(), index, LETTERS, depth)


@every_task
def test_settings_make_the_same_task(kind):
    task = kind(every=3).bind(2, encode, C)
    again = kind(**task.settings()).bind(2, encode, C)
    assert task.settings()["every"] == 3
    assert digest(again.row(600, 1, LETTERS.take(1, 600))) == digest(task.row(600, 1, LETTERS.take(1, 600)))


def test_bind_leaves_the_original_alone():
    task = MultiKey()
    bound = task.bind(3, encode, C)
    assert (bound.seed, bound.align, bound.placement) == (3, C, "chunk")
    assert (task.align, task.placement) == (None, "end")
    with pytest.raises(RuntimeError, match="bind"):
        task.episode(300, 0, LETTERS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SingleNeedle(needle="|passkey|"), "{value}"),
        (lambda: MultiKey(question="|{key} {other}?"), "{key}"),
        (lambda: MultiKey(keys=1), "2 needles or more"),
        (lambda: MultiKey(needles_per_row=1), "needles_per_row"),
        (lambda: MultiKey(every=0), "every"),
        (lambda: MultiKey(near=1.5), "near"),
        (lambda: MultiQuery(queries=1), "queries"),
        (lambda: MultiQuery(keys=2, queries=3), "3 needles or more"),
        (lambda: MultiHop(hops=0), "hops"),
        (lambda: MultiKey(prompt="").bind(0, encode, C), "prompt"),
        (lambda: MultiKey(digits=0).bind(0, encode, C), "not 0"),
        (lambda: MultiKey(digits=16).bind(0, encode, C), "not 16"),
        (lambda: MultiQuery().bind(0, encode, 8), "chunk of 8"),
        (lambda: MultiKey().bind(0, encode, 0), "align"),
        (lambda: MultiKey(key_letters=1, keys=27).bind(0, encode, C).episode(999, 0, LETTERS), "27 needles"),
        (lambda: MultiKey().bind(0, encode, C).episode(300, 0, LETTERS, 1.1), "depth"),
        (lambda: MultiKey().bind(0, encode, C).row(300, 0, LETTERS.take(0, 299)), "shape"),
    ],
)
def test_errors_name_the_thing(make, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


def test_wide_tokens_read_back():
    assert decode_wide(encode_wide("|AB is 12345|")) == "|AB is 12345|"
