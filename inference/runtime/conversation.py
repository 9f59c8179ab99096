"""Question -> token ids, token ids -> answer text and diagnosis, with the tokenizer of the model package."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from inference.contract import Diagnosis
from inference.errors import InputRejected, PackageInvalid
from inference.prompts import ANSWER_CUE, DIAGNOSIS_CUE, IM_END, SPECIAL_TOKENS, prompt_text
from inference.runtime.generate import Answer
from inference.runtime.model_repository import Manifest

LOG = logging.getLogger(__name__)
MAX_QUERY_CHARACTERS = 4000


class Conversation:
    """The tokenizer and the closed labels of one model package."""

    def __init__(self, tokenizer_json: bytes, manifest: Manifest) -> None:
        """Check that the tokenizer speaks the wording of `inference.prompts`.

        Raises
        ------
        PackageInvalid
        """
        if manifest.text.answer_cue != ANSWER_CUE:
            raise PackageInvalid(
                f"model.toml: text.answer_cue is {manifest.text.answer_cue!r}, but this version writes "
                f"{ANSWER_CUE!r}. Export the package again with this version."
            )
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self._max_query_tokens = manifest.text.max_query_tokens
        self._special_ids = _special_ids(self._tokenizer)
        self.labels = manifest.labels.diagnoses
        self.label_ids = self._first_ids(self.labels)

    def special_id(self, token: str) -> int:
        """The id of one of `prompts.SPECIAL_TOKENS`."""
        return self._special_ids[token]

    def question_ids(self, query: str) -> NDArray[np.int64]:
        """(1, T) int64: the tokens that follow the image. A long query is cut, the answer cue never.

        Raises
        ------
        InputRejected
            If there is no query, it is absurdly long, or it contains one of the model's own signs.
        """
        if not query.strip():
            raise InputRejected("The query is empty; ask something, e.g. 'Where is the lesion?'.")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InputRejected(
                f"The query has {len(query)} characters; at most {MAX_QUERY_CHARACTERS} are read."
            )
        for token in SPECIAL_TOKENS:
            if token in query:
                raise InputRejected(
                    f"The query contains {token}, which only the model may say; leave it out."
                )
        ids = self._tokenizer.encode(prompt_text(self._cut(query.strip())), add_special_tokens=False).ids
        return np.array([[self._special_ids[IM_END], *ids]], np.int64)

    def tokenise(self, text: str) -> tuple[int, ...]:
        """The tokens of `text` as it stands inside an answer."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, special tokens such as [SEG] written out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False)).strip()

    def diagnosis(self, answer: Answer, label: str | None) -> Diagnosis | None:
        """`label` with its probability where the answer named it, and the other labels with theirs."""
        place = self._diagnosis_place(answer.token_ids)
        if label not in self.labels or place is None:
            return None
        by_label = dict(zip(self.labels, answer.label_probabilities[place].tolist(), strict=True))
        others = sorted(
            ((name, chance) for name, chance in by_label.items() if name != label), key=lambda pair: -pair[1]
        )
        return Diagnosis(label, by_label[label], tuple(others))

    def _cut(self, query: str) -> str:
        encoding = self._tokenizer.encode(query, add_special_tokens=False)
        if len(encoding.ids) <= self._max_query_tokens:
            return query
        LOG.warning(
            "the query has %d tokens; its first %d are asked", len(encoding.ids), self._max_query_tokens
        )
        return query[: encoding.offsets[self._max_query_tokens - 1][1]]

    def _diagnosis_place(self, token_ids: Sequence[int]) -> int | None:
        """The last position whose token was chosen right after the words "the diagnosis is"."""
        for place in range(len(token_ids) - 1, 0, -1):
            if self.text(token_ids[:place]).endswith(DIAGNOSIS_CUE):
                return place
        return None

    def _first_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        first = tuple(
            self._tokenizer.encode(f" {label}", add_special_tokens=False).ids[0] for label in labels
        )
        if len(set(first)) != len(first):
            raise PackageInvalid(
                f"model.toml: two of the labels {', '.join(labels)} begin with the same token, so that no "
                "confidence can be told. Train the tokenizer so that their first tokens differ."
            )
        return first


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    for expected, (token, found) in enumerate(ids.items()):
        if found != expected:
            raise PackageInvalid(
                f"tokenizer.json gives {token} the id {found}, not {expected}; export it again."
            )
    return {token: expected for expected, token in enumerate(SPECIAL_TOKENS)}
