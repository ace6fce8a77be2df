import json
from pathlib import Path

import pytest

from gca_lit.data.tokenizers import PIECE, ByteTokenizer, FileTokenizer, load_tokenizer


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<eos>": 0, "[UNK]": 1, "one": 2, "two": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_one_that_ships() -> None:
    path = Path(__file__).parents[2] / "data" / "tokenizers" / "books_math_8k.json"
    assert path.stat().st_size < 1 << 20
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.vocab_size, tokenizer.eos) == (8192, 0)
    assert all(len(tokenizer.encode(word)) == 1 for word in (" the", " captain", " morphism", "begin"))
    for number in ("7", "1984", "2,048", "x12y3", "3.14159"):
        digits = [token for token in tokenizer.encode(number) if any(c.isdigit() for c in tokenizer.decode([token]))]
        assert [tokenizer.decode([token]) for token in digits] == [c for c in number if c.isdigit()]


def test_bytes_round_trip() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("naïve 漢字\n")
    assert max(ids) < 256 and tokenizer.decode([*ids, tokenizer.eos]) == "naïve 漢字\n"


def test_file(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert (tokenizer.vocab_size, tokenizer.eos) == (4, 0)
    assert tokenizer.encode("one two three") == [2, 3, 1]
    assert tokenizer.identity == FileTokenizer(str(tokenizer_file)).identity


def test_long_text_is_cut_at_newlines(tokenizer_file: Path) -> None:
    text = "one two\n" * (PIECE // 4)
    assert load_tokenizer(str(tokenizer_file)).encode(text) == [2, 3] * (PIECE // 4)


def test_errors(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="is a directory"):
        load_tokenizer(str(tmp_path))
    content = json.loads(tokenizer_file.read_text())
    tokenizer_file.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_tokenizer(str(tokenizer_file))
    tokenizer_file.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        load_tokenizer(str(tokenizer_file))
    content["model"]["vocab"] = {"[UNK]": 0}
    tokenizer_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(str(tokenizer_file))
