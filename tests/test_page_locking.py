import pytest

from gca_lit.page_locking import SETTING, lock_pages_in_threads


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": SETTING}),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, {"PYTORCH_CUDA_ALLOC_CONF": SETTING}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:True,{SETTING}"},
        ),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": f"backend:native,{SETTING}"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "pinned_num_register_threads:1"},
            {"PYTORCH_CUDA_ALLOC_CONF": "pinned_num_register_threads:1"},
        ),
    ],
)
def test_what_the_user_asks_of_the_allocator_stays(given, expected):
    lock_pages_in_threads(given)
    assert given == expected


def test_asking_twice_is_asking_once():
    environment: dict[str, str] = {}
    lock_pages_in_threads(environment)
    once = dict(environment)
    lock_pages_in_threads(environment)
    assert environment == once
