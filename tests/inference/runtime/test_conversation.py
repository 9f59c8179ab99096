"""Questions become the tokens training used; answers become text and a diagnosis."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from inference import prompts
from inference.errors import InputRejected, PackageInvalid
from inference.runtime.conversation import MAX_QUERY_CHARACTERS, Conversation
from inference.runtime.generate import Answer
from inference.runtime.model_repository import Manifest
from tests.inference.runtime import tiny_package

IM_END = 4


def manifest(*, cue: str = prompts.ANSWER_CUE, longest: int = 48, labels: tuple[str, ...] = ()) -> Manifest:
    return Manifest.model_validate(
        {
            "model": {"name": "tiny", "version": "1", "family": "sim4seg"},
            "input": {"side": 256, "mean": (0, 0, 0), "std": (1, 1, 1)},
            "region": {"grid": 16, "top_k": 36},
            "text": {"max_query_tokens": longest, "max_new_tokens": 128, "answer_cue": cue},
            "labels": {"diagnoses": labels or prompts.DIAGNOSES},
            "files": {"tokenizer.json": "0" * 64},
        }
    )


def converse(tokenizer: Tokenizer, **changes: object) -> Conversation:
    return Conversation(tokenizer.to_str().encode(), manifest(**changes))  # type: ignore[arg-type]


def answer_of(token_ids: list[int], labels: np.ndarray) -> Answer:
    return Answer(
        tuple(token_ids),
        np.zeros(len(token_ids)),
        labels,
        None,
        np.zeros((1, 1), np.float32),
        True,
        False,
        0,
        0,
    )


def test_a_question_is_im_end_then_the_template(tokenizer: Tokenizer) -> None:
    ids = converse(tokenizer).question_ids(" Where is the lesion? ")
    assert ids.dtype == np.int64
    assert ids[0, 0] == IM_END
    assert tokenizer.decode(ids[0, 1:].tolist()) == "\nUSER: Where is the lesion?\nASSISTANT:"
    assert ids[0, 1:].tolist() == tokenizer.encode(prompts.prompt_text("Where is the lesion?")).ids


def test_a_long_query_is_cut_and_the_cue_is_kept(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    query = "Is there a lesion, and is it malignant? " * 40
    ids = converse(tokenizer, longest=10).question_ids(query)
    text = tokenizer.decode(ids[0, 1:].tolist())
    assert text.startswith("\nUSER: Is there a")
    assert text.endswith(prompts.ANSWER_CUE)
    cut = text.removeprefix("\nUSER: ").removesuffix(prompts.ANSWER_CUE)
    assert 8 <= len(tokenizer.encode(cut).ids) <= 10
    assert "its first 10 are asked" in caplog.text
    assert "lesion" not in caplog.text


def test_a_query_of_any_script_is_taken(tokenizer: Tokenizer) -> None:
    ids = converse(tokenizer).question_ids("Où est la lésion ? 病変は?")
    assert tokenizer.decode(ids[0, 1:].tolist()).startswith("\nUSER: Où est")


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("a" * (MAX_QUERY_CHARACTERS + 1), "at most 4000"),
        ("Where? [SEG]", r"contains \[SEG\]"),
        ("<eos>", "contains <eos>"),
    ],
)
def test_a_query_that_cannot_be_asked_is_refused(tokenizer: Tokenizer, query: str, complaint: str) -> None:
    with pytest.raises(InputRejected, match=complaint):
        converse(tokenizer).question_ids(query)


def test_an_answer_reads_as_it_was_written(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(tiny_package.ANSWER).ids
    text = converse(tokenizer).text(ids)
    assert text == tiny_package.ANSWER.strip()
    assert prompts.parse_answer(text).is_well_formed


@pytest.mark.parametrize("label", prompts.DIAGNOSES)
def test_confidence_is_read_where_the_diagnosis_is_named(tokenizer: Tokenizer, label: str) -> None:
    conversation = converse(tokenizer)
    before = tokenizer.encode(" It is [SEG]. Finally, the diagnosis is").ids
    ids = before + tokenizer.encode(f" {label}.").ids
    labels = np.full((len(ids) + 1, len(prompts.DIAGNOSES)), 0.125)
    here = prompts.DIAGNOSES.index(label)
    labels[len(before)] = 0.4 / 7
    labels[len(before), here] = 0.6
    diagnosis = conversation.diagnosis(answer_of(ids, labels), label)
    assert diagnosis is not None
    assert (diagnosis.label, diagnosis.confidence) == (label, pytest.approx(0.6))
    assert len(diagnosis.alternatives) == len(prompts.DIAGNOSES) - 1
    assert sum(chance for _, chance in diagnosis.alternatives) == pytest.approx(0.4)


def test_alternatives_come_likeliest_first(tokenizer: Tokenizer) -> None:
    before = tokenizer.encode(" Finally, the diagnosis is").ids
    ids = before + tokenizer.encode(" benign.").ids
    labels = np.zeros((len(ids) + 1, 8))
    labels[len(before)] = [0.5, 0.1, 0.0, 0.0, 0.3, 0.1, 0.0, 0.0]
    diagnosis = converse(tokenizer).diagnosis(answer_of(ids, labels), "benign")
    assert diagnosis is not None
    assert [name for name, _ in diagnosis.alternatives][:3] == ["polyp", "malignant", "lung nodule"]


@pytest.mark.parametrize(("text", "label"), [(" Finally, no diagnosis is made.", None), (" It is", "benign")])
def test_no_diagnosis_is_made_up(tokenizer: Tokenizer, text: str, label: str | None) -> None:
    ids = tokenizer.encode(text).ids
    assert converse(tokenizer).diagnosis(answer_of(ids, np.zeros((len(ids) + 1, 8))), label) is None


def test_a_package_with_another_wording_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PackageInvalid, match="answer_cue"):
        converse(tokenizer, cue="\nBOT:")


def test_labels_that_cannot_be_told_apart_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PackageInvalid, match="begin with the same token"):
        converse(tokenizer, labels=("no fracture", "no polyp"))


def test_a_tokenizer_with_other_special_tokens_is_refused() -> None:
    with pytest.raises(PackageInvalid, match="<pad>"):
        Conversation(Tokenizer.from_str(bare_tokenizer()).to_str().encode(), manifest())


def bare_tokenizer() -> str:
    return '{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}'
