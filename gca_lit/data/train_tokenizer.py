"""A tokenizer from text: python -m gca_lit.data.train_tokenizer --input FILES... --output DIR/tokenizer.json"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from gca_lit.arguments import Arguments, interrupted, said
from gca_lit.data.inputs import PART_BYTES, Part, find_inputs, inspect, read_part
from gca_lit.data.tokenizers import cut_text
from gca_lit.whole_file import WholeFile, saving

END = "<|endoftext|>"
SMALLEST = 256 + 1


def train_tokenizer(
    inputs: list[str], output: str, vocab_size: int = 16_384, text_column: str = "text", split_digits: bool = False
) -> str:
    """Learn a byte-level BPE from `inputs` (files or globs: .txt, .jsonl, .parquet) and write it to `output`.

    Every byte has a token of its own and texts are not normalized, so that any text comes back as it was. The id 0,
    <|endoftext|>, ends a document. With `split_digits` each digit is a token of its own: numbers of one length then
    have equally many tokens. The same text gives the same file. Memory holds one part of 8 MiB at a time, and how often
    each different word occurs. Returns one sentence on what was done.

    Raises ValueError or FileNotFoundError for inputs, a size or an output that cannot be used; a file that is there
    already is left as it is, and refused unless it is the same. Raises NotSaved when the disk does not take it.
    """
    files = find_inputs(inputs)
    path = Path(output)
    if vocab_size < SMALLEST:
        raise ValueError(f"--vocab-size must be at least {SMALLEST}, the 256 bytes and {END}, not {vocab_size}")
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"--output {output} is not the name of a .json file: give DIR/tokenizer.json")
    parts = list(chain.from_iterable(map(partial(inspect, columns=[text_column], part_bytes=PART_BYTES), files)))
    content, size = _train(_texts(parts, text_column), vocab_size, split_digits)
    if path.exists():
        if path.read_bytes() != content:
            raise ValueError(f"{output} is another tokenizer: remove it, or choose another --output")
        return f"{output} is up to date"
    with saving(f"{output} could not be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with WholeFile(path) as file:
            file.write(content)
    fewer = f", not {vocab_size}: the text has no more pairs that occur twice" if size < vocab_size else ""
    return f"{output}: {size} tokens{fewer}"


def _train(texts: Iterator[str], vocab_size: int, split_digits: bool) -> tuple[bytes, int]:
    """A tokenizer.json, and how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if split_digits else words
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode(), tokenizer.get_vocab_size()


def _texts(parts: list[Part], column: str) -> Iterator[str]:
    """The text of all parts, in the pieces in which it will be encoded."""
    for part in tqdm(parts, desc="train_tokenizer", unit="part", disable=None):
        for text in read_part(part, [column]):
            yield from cut_text(text)


def main(arguments: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.data.train_tokenizer", description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, metavar="FILES", help=".txt, .jsonl, .parquet; or globs")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write, DIR/tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=16_384, help="tokens of the vocabulary (default: 16384)")
    parser.add_argument("--text-column", default="text", help="field or column that holds the text (default: text)")
    parser.add_argument("--split-digits", action="store_true", help="make each digit a token of its own")
    given = parser.parse_args(arguments)
    try:
        print(train_tokenizer(given.input, given.output, given.vocab_size, given.text_column, given.split_digits))
    except (ValueError, OSError) as error:
        parser.error(said(error))
    except KeyboardInterrupt:
        interrupted(": give the same command again")


if __name__ == "__main__":
    main()
