"""Trains the byte-level BPE of sim4seg-s on its own answers and queries.

python -m inference.training.tokenizer --data /path/to/data --cache /path/to/cache --out tokenizer.json
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from inference.datasets.frames import Frames, open_frames
from inference.datasets.m3ds import GENERIC_QUERIES, KINDS, Record, load_records
from inference.datasets.measure import answer_of
from inference.datasets.sample import frame_sample
from inference.prompts import DIAGNOSES, SPECIAL_TOKENS, ZONES, prompt_text

VOCABULARY = 768


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE whose first ids are the special tokens; every byte has a token, so nothing is unknown.

    Raises
    ------
    ValueError
        If two diagnoses begin with the same token: their scores could not be told apart.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    label_tokens(tokenizer)
    return tokenizer


def label_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Diagnosis -> id of its first token, which is its own."""
    first = {label: tokenizer.encode(f" {label}").ids[0] for label in DIAGNOSES}
    if len(set(first.values())) != len(first):
        raise ValueError(f"diagnoses share first tokens: {first}")
    return first


def corpus(records: Sequence[Record], frames: Frames) -> list[str]:
    """Queries of every kind, answers of every training record, and words that must not fall apart."""
    queries = [*GENERIC_QUERIES, *(query for kind in KINDS.values() for query in kind.queries)]
    answers = [answer_of(frame_sample(r, frames, i)) for i, r in enumerate(records) if r.split == "train"]
    closed = [f" {word}" for word in (*DIAGNOSES, *ZONES)] + [f" {number}" for number in range(101)]
    return [prompt_text(query) for query in queries] * 40 + answers + closed * 20


def main() -> None:
    """Write tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    records = load_records(options.data)
    train_tokenizer(corpus(records, open_frames(records, options.cache, 256))).save(str(options.out))


if __name__ == "__main__":
    main()
