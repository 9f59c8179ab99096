"""A model package of a few kilobytes with the real graph names and shapes, and an answer we can predict.

Its "language model" recites a script: the first one when any pixel is bright, else the second. Its mask is
where the image is bright (normalised value above 0.5), so that geometry can be checked.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inference import prompts

SIDE, GRID, STATE, TOP_K = 256, 16, 256, 36
QUERY = "Is there a lesion, and is it malignant?"
FINDINGS = prompts.Findings(
    modality="breast ultrasound image",
    zone="upper left",
    area_percent=6,
    shape="oval",
    orientation="wider than tall",
    margin="smooth",
    brightness="brighter than",
    texture="homogeneous",
    diagnosis="benign",
)
ANSWER = prompts.write_answer(FINDINGS)
EMPTY_ANSWER = prompts.write_empty_answer("bone radiograph", "no fracture")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the closed wording; special tokens 0..5 as `prompts` orders them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(prompts.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [ANSWER, EMPTY_ANSWER, prompts.prompt_text(QUERY)]
    texts += [f" Finally, the diagnosis is {label}." for label in prompts.DIAGNOSES]
    tokenizer.train_from_iterator(texts * 4, trainer)
    return tokenizer


def write_package(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    answers: tuple[str, str] = (ANSWER, EMPTY_ANSWER),
    nan: bool = False,
) -> Path:
    """Write the package into `folder`; `nan` makes the mask decoder give NaN."""
    folder.mkdir(parents=True)
    scripts = [[*tokenizer.encode(answer).ids, 2] for answer in answers]
    logits = _script_logits(scripts, tokenizer.get_vocab_size())
    graphs = {
        "image_encoder": image_encoder(),
        "language_prefill": language_prefill(logits),
        "language_step": language_step(logits),
        "mask_decoder": mask_decoder(nan=nan),
    }
    for name, model in graphs.items():
        onnx.checker.check_model(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, *, replace: tuple[str, str] = ("", "")) -> None:
    """Write model.toml with the sha256 of every other file there."""
    files = sorted(path for path in folder.iterdir() if path.name != "model.toml")
    digests = "\n".join(
        f'"{path.name}" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"' for path in files
    )
    labels = ", ".join(f'"{label}"' for label in prompts.DIAGNOSES)
    text = f"""
[model]
name = "{folder.name}"
version = "0.0.1"
family = "sim4seg"
licence = "none: made up by a test"
[input]
side = {SIDE}
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[region]
grid = {GRID}
top_k = {TOP_K}
[text]
tokenizer = "tokenizer.json"
layers = 1
max_query_tokens = 48
max_new_tokens = 200
answer_cue = "\\nASSISTANT:"
[labels]
diagnoses = [{labels}]
[files]
{digests}
"""
    (folder / "model.toml").write_text(text.replace(*replace) if replace[0] else text)


def image_encoder() -> onnx.ModelProto:
    """Channel 0 of the embedding is the mean of the normalised channels over 4x4 pixels."""
    mix = np.zeros((256, 3, 1, 1), np.float32)
    mix[0] = 1 / 3
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["pooled", "mix"], ["image_embedding"]),
    ]
    return _model(
        nodes, {"pixels": (FLOAT, [1, 3, SIDE, SIDE])}, {"image_embedding": [1, 256, 64, 64]}, {"mix": mix}
    )


def language_prefill(logits: np.ndarray) -> onnx.ModelProto:
    """The prefix says which script is recited (values)."""
    along_state = np.zeros((1, STATE), np.float32)
    along_state[0, 0] = 1
    nodes = [
        helper.make_node("ReduceMax", ["pixels"], ["brightest"], keepdims=0),
        helper.make_node("Less", ["brightest", "one"], ["is_dark"]),
        helper.make_node("Cast", ["is_dark"], ["script"], to=FLOAT),
        helper.make_node("Shape", ["text_ids"], ["length"], start=1),
        helper.make_node("Add", ["length", "prefix"], ["sequence"]),
        helper.make_node("Concat", ["ones2", "sequence", "ones1"], ["cache_shape"], axis=0),
        helper.make_node("Expand", ["zero", "cache_shape"], ["prefix_keys.0"]),
        helper.make_node("Expand", ["script", "cache_shape"], ["prefix_values.0"]),
        helper.make_node("Cast", ["script"], ["row"], to=INT64),
        helper.make_node("Mul", ["row", "steps"], ["index"]),
        helper.make_node("Unsqueeze", ["index", "axis0"], ["indices"]),
        helper.make_node("Gather", ["table", "indices"], ["logits"]),
        helper.make_node("Gather", ["states", "indices"], ["state_embedding"]),
        helper.make_node("AveragePool", ["pixels"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("ReduceMean", ["pooled", "axis1"], ["cells"], keepdims=0),
        helper.make_node("Reshape", ["cells", "column"], ["cell_column"]),
        helper.make_node("MatMul", ["cell_column", "along_state"], ["image_tokens"]),
    ]
    cache = [1, 1, "S", 1]
    return _model(
        nodes,
        {"pixels": (FLOAT, [1, 3, SIDE, SIDE]), "text_ids": (INT64, [1, "T"])},
        {
            "logits": [1, logits.shape[-1]],
            "prefix_keys.0": cache,
            "prefix_values.0": cache,
            "image_tokens": [GRID * GRID, STATE],
            "state_embedding": [1, STATE],
        },
        {
            "one": np.float32(1.0),
            "zero": np.float32(0.0),
            "prefix": np.array([2 + GRID * GRID]),
            "ones2": np.array([1, 1]),
            "ones1": np.array([1]),
            "steps": np.int64(logits.shape[1]),
            "axis0": np.array([0]),
            "axis1": np.array([1]),
            "column": np.array([-1, 1]),
            "along_state": along_state,
            "table": logits.reshape(-1, logits.shape[-1]),
            "states": _states(logits),
        },
    )


def language_step(logits: np.ndarray) -> onnx.ModelProto:
    """Say the next token of the script, which the prefix names, and keep that in the cache."""
    nodes = [
        helper.make_node("Cast", ["token_ids"], ["token"], to=FLOAT),
        helper.make_node("Mul", ["token", "zero"], ["nothing"]),  # the token must be an input that is used
        helper.make_node("Reshape", ["nothing", "cell"], ["nothings"]),
        helper.make_node("Add", ["nothings", "one"], ["counted"]),
        helper.make_node("Concat", ["past_keys.0", "counted"], ["present_keys.0"], axis=2),
        helper.make_node("Slice", ["prefix_values.0", "begin", "end", "axis2"], ["script_cell"]),
        helper.make_node("Add", ["script_cell", "nothings"], ["script_cells"]),  # one of each path
        helper.make_node("Concat", ["past_values.0", "script_cells"], ["present_values.0"], axis=2),
        helper.make_node("ReduceSum", ["prefix_keys.0"], ["before"], keepdims=0),  # zeros
        helper.make_node("Cast", ["prefix_lengths"], ["read"], to=FLOAT),
        helper.make_node("Mul", ["read", "zero"], ["read_nothing"]),
        helper.make_node("Cast", ["past_lengths"], ["said"], to=FLOAT),
        helper.make_node("Sum", ["said", "one", "before", "read_nothing"], ["taken"]),
        helper.make_node("Reshape", ["script_cells", "flat"], ["script"]),
        helper.make_node("Mul", ["script", "steps"], ["offset"]),
        helper.make_node("Add", ["taken", "offset"], ["place"]),
        helper.make_node("Cast", ["place"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["logits"]),
        helper.make_node("Gather", ["states", "index"], ["state_embedding"]),
    ]
    prefix, past, present = ["G", 1, "S", 1], ["B", 1, "T", 1], ["B", 1, "T_next", 1]
    lengths = {"prefix_lengths": (INT64, ["G"]), "past_lengths": (INT64, ["B"])}
    caches = {f"{part}.0": (FLOAT, prefix) for part in ("prefix_keys", "prefix_values")}
    caches |= {f"{part}.0": (FLOAT, past) for part in ("past_keys", "past_values")}
    return _model(
        nodes,
        {"token_ids": (INT64, ["B", 1]), **lengths, **caches},
        {
            "logits": ["B", logits.shape[-1]],
            "present_keys.0": present,
            "present_values.0": present,
            "state_embedding": ["B", STATE],
        },
        {
            "zero": np.float32(0.0),
            "one": np.float32(1.0),
            "cell": np.array([-1, 1, 1, 1]),
            "flat": np.array([-1]),
            "begin": np.array([0]),
            "end": np.array([1]),
            "axis2": np.array([2]),
            "steps": np.float32(logits.shape[1]),
            "table": logits.reshape(-1, logits.shape[-1]),
            "states": _states(logits),
        },
    )


def mask_decoder(*, nan: bool = False) -> onnx.ModelProto:
    """Logits: embedding channel 0 minus a half, upsampled. Similarity: image tokens times [SEG] state."""
    nodes = [
        helper.make_node("Slice", ["image_embedding", "begin", "end", "axis1"], ["brightness"]),
        helper.make_node("Resize", ["brightness", "", "scales"], ["upsampled"], mode="nearest"),
        helper.make_node("Sub", ["upsampled", "half"], ["logits"]),
        helper.make_node("Mul", ["logits", "factor"], ["low_res_logits"]),
        helper.make_node("Transpose", ["seg_embedding"], ["seg_column"], perm=[1, 0]),
        helper.make_node("MatMul", ["image_tokens", "seg_column"], ["dots"]),
        helper.make_node("Reshape", ["dots", "grid"], ["dot_grid"]),
        helper.make_node("Sigmoid", ["dot_grid"], ["chance"]),
        helper.make_node("Mul", ["chance", "valid_cells"], ["similarity"]),
        helper.make_node("Greater", ["similarity", "half"], ["is_region"]),
        helper.make_node("Cast", ["is_region"], ["region"], to=FLOAT),
        helper.make_node("Identity", ["iou"], ["iou_predictions"]),
    ]
    return _model(
        nodes,
        {
            "image_embedding": (FLOAT, [1, 256, 64, 64]),
            "image_tokens": (FLOAT, [GRID * GRID, STATE]),
            "seg_embedding": (FLOAT, ["N", STATE]),
            "valid_cells": (FLOAT, [GRID, GRID]),
        },
        {
            "low_res_logits": ["N", 1, 256, 256],
            "iou_predictions": [1, 1],
            "similarity": ["N", GRID, GRID],
            "region": ["N", GRID, GRID],
        },
        {
            "begin": np.array([0]),
            "end": np.array([1]),
            "axis1": np.array([1]),
            "scales": np.array([1, 1, 4, 4], np.float32),
            "half": np.float32(0.5),
            "factor": np.float32("nan" if nan else 1.0),
            "grid": np.array([-1, GRID, GRID]),
            "iou": np.array([[0.9]], np.float32),
        },
    )


def _script_logits(scripts: list[list[int]], vocabulary: int) -> np.ndarray:
    logits = np.zeros((len(scripts), max(map(len, scripts)), vocabulary), np.float32)
    logits[:, :, 2] = 4.0  # past its end a script says <eos>
    for number, script in enumerate(scripts):
        for place, token in enumerate(script):
            logits[number, place, token] = 8.0
    return logits


def _states(logits: np.ndarray) -> np.ndarray:
    """Only the state that predicts [SEG] points along the first axis; any other gives similarity 0.5."""
    says_seg = logits.reshape(-1, logits.shape[-1]).argmax(-1) == prompts.SPECIAL_TOKENS.index(prompts.SEG)
    states = np.zeros((says_seg.size, STATE), np.float32)
    states[:, 0] = says_seg
    return states


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
