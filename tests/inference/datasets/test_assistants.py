"""Chains are written, judged, tried again and reviewed; an LVLM takes the place of rules by a folder."""

import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from inference.datasets.assistants import (
    Draft,
    ReviewQueue,
    RuleAssistant,
    Task,
    Verdict,
    draft,
    generate_chains,
    tasks_of,
)
from inference.datasets.lvlm_assistant import LvlmAssistant, read_verdict
from inference.datasets.m3ds import load_records
from tests.inference.datasets import tiny_data

RULES = RuleAssistant()


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    return list(tasks_of(load_records(tiny_data.write(tmp_path / "data"))[:5]))


class Stubborn(RuleAssistant):
    """Says the wrong thing until it was told off `patience` times."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.heard: list[tuple[str, ...]] = []

    def write(self, task: Task, objections: tuple[str, ...]) -> str:
        self.heard.append(objections)
        chain = super().write(task, objections)
        return (
            chain if len(objections) >= self.patience else chain.replace("diagnosis is", "diagnosis may be")
        )


def test_what_rules_write_rules_accept(tasks: list[Task]) -> None:
    for task in tasks:
        one = draft(RULES, RULES, task)
        assert one.is_accepted
        assert one.rounds == 1


@pytest.mark.parametrize(
    ("wrong", "right", "reason"),
    [
        ("Finally", "Lastly", "missing"),
        ("benign", "malignant", "confirmed diagnosis is benign"),
        ("breast ultrasound image and the target is the breast lesion", "colonoscopy image and the target is the polyp", "is a breast"),  # noqa: E501
        ("covers about ", "covers about 9", "percent"),
        ("brighter than", "darker than", "echo"),
        ("It is [SEG].", "There is nothing to outline.", "outline is told wrongly"),
    ],
)  # fmt: skip
def test_the_critic_finds_the_fault(tasks: list[Task], wrong: str, right: str, reason: str) -> None:
    chain = RULES.write(tasks[0], ())
    assert wrong in chain
    verdict = RULES.judge(tasks[0], chain.replace(wrong, right))
    assert not verdict.is_accepted
    assert reason in verdict.reason


def test_objections_go_back_to_the_writer(tasks: list[Task]) -> None:
    writer = Stubborn(2)
    one = draft(writer, RULES, tasks[0])
    assert (one.is_accepted, one.rounds, len(one.objections)) == (True, 3, 2)
    assert [len(heard) for heard in writer.heard] == [0, 1, 2]
    assert not draft(Stubborn(9), RULES, tasks[0], rounds=2).is_accepted


def test_what_is_not_accepted_waits_for_a_person(tasks: list[Task], tmp_path: Path) -> None:
    queue = ReviewQueue(tmp_path / "review")
    assert list(generate_chains(Stubborn(9), RULES, tasks, queue)) == []
    first, second, *others = queue.waiting()
    assert len(others) == 3
    queue.accept(first, "Rewritten by a person.")
    queue.reject(second, "the margin is wrong")
    again = list(generate_chains(RULES, RULES, tasks, queue))
    assert "Rewritten by a person." in [one.chain for one in again]
    assert second.name not in [one.name for one in again]  # a person must look at it again
    assert [one.name for one in queue.waiting()] == [second.name]
    assert len(again) == len(tasks) - 1


def test_a_draft_survives_the_disk(tmp_path: Path) -> None:
    queue = ReviewQueue(tmp_path)
    one = Draft("../odd name", "busbra", "q", "chain", False, 3, ("a", "b"))
    queue.put(one)
    assert queue.waiting() == [one]
    assert [path.name for path in tmp_path.iterdir()] == ["busbra-___odd_name.json"]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("ACCEPT", Verdict(True)),
        (" accept. Well done.", Verdict(True)),
        ("REJECT: no conclusion", Verdict(False, "no conclusion")),
        ("REJECT", Verdict(False, "no reason was given")),
        ("", Verdict(False, "the critic gave no verdict")),
        ("I do not know", Verdict(False, "the critic gave no verdict")),
    ],
)
def test_verdicts_in_words(said: str, verdict: Verdict) -> None:
    assert read_verdict(said) == verdict


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A tiny random LLaVA, written by transformers."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "REJECT": 4}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "llava"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
            additional_special_tokens=["<image>"],
        )  # fmt: skip
        processor = LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
            tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                image_size=28, patch_size=14,
            ),
            text_config=LlamaConfig(
                vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
            ),
            image_token_id=3, image_seq_length=4,
        )  # fmt: skip
        LlavaForConditionalGeneration(config).save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def test_an_lvlm_takes_the_assistants_place(llava: Path, tasks: list[Task], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assistant = LvlmAssistant(llava, max_new_tokens=5)
        chain = assistant.write(tasks[0], ("too short",))
        assert isinstance(chain, str)
        assert chain == assistant.write(tasks[0], ("too short",))  # greedy: the same twice
        queue = ReviewQueue(tmp_path / "review")
        assert list(generate_chains(assistant, assistant, tasks[:1], queue, rounds=2)) == []
    (waiting,) = queue.waiting()  # random words convince nobody
    assert waiting.rounds == 2
    assert all(waiting.objections)
