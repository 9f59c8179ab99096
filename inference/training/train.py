"""One loop, read top to bottom: recipe -> data -> model -> steps -> checkpoint.

    python -m inference.training.train --stage segmenter --recipe inference/training/recipes/sim4seg_s.toml \
        --data /path/to/data --cache /path/to/cache --out /path/to/run

The clock is part of the recipe: a stage lasts its minutes, whatever the machine, and its learning
rate follows the time that has passed. A run that stops goes on from its last checkpoint. It works on the
first GPU where there is one (never measured), else on the CPU; with WORLD_SIZE and RANK in the environment
each process has a GPU or a core of its own. `log.jsonl` and `curve.svg` tell how it went. `--hurry 0.01`
takes so much of the stage's time, to see that a chain of stages runs; what it makes is worth nothing.
"""

import argparse
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as peers
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from inference.models.checkpoints import average_into, load_into, load_tensors, save_tensors, with_prefix
from inference.training.build import build_stage
from inference.training.curve import draw_curves
from inference.training.recipe import load_recipe
from inference.training.stages import Phase, Stage

log = logging.getLogger("train")


class Run:
    """A stage in training: its optimiser, its moving average, its clock and its folder."""

    def __init__(self, stage: Stage, recipe: dict[str, Any], out: Path) -> None:
        self.stage = stage
        self.recipe = recipe
        self.out = out
        self.phases = [Phase(**phase) for phase in recipe["phase"]]
        groups = parameter_groups(stage.module, recipe.get("shares", {}))
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(
            groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), weight_decay=recipe["weight_decay"]
        )
        self.average = {name: value.detach().clone() for name, value in stage.module.state_dict().items()}
        self.step = 0
        self.elapsed_s = 0.0

    @property
    def total_s(self) -> float:
        """How long the stage lasts, seconds."""
        return 60.0 * sum(phase.minutes for phase in self.phases)

    @property
    def phase(self) -> Phase:
        """The phase the clock stands in; the last one once all are over."""
        passed_s = self.elapsed_s
        for phase in self.phases:
            passed_s -= 60.0 * phase.minutes
            if passed_s < 0:
                return phase
        return self.phases[-1]

    def learning_rate(self) -> float:
        """Linear warm-up by steps, then a cosine over the stage's time."""
        warm: float = min(1.0, (self.step + 1) / self.recipe["warm_up_steps"])
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, self.elapsed_s / self.total_s)))
        floor: float = self.recipe["lr_floor"]
        rate: float = self.recipe["lr"] * warm * (floor + (1 - floor) * left)
        return rate

    def take_step(self) -> dict[str, float]:
        """One update; returns the losses."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate() * group["share"]
        losses = self.stage.losses(self.phase)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        average_gradients(self.trained)
        nn.utils.clip_grad_norm_(self.trained, self.recipe["clip_norm"])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        average_into(
            self.average, self.stage.module, min(self.recipe["ema_decay"], (self.step + 1) / (self.step + 10))
        )
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def save(self) -> None:
        """Write state.safetensors (to go on from) and weights.safetensors (the moving average)."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.stage.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
        notes = {"step": str(self.step), "elapsed_s": str(self.elapsed_s)}
        save_tensors(self.out / "state.safetensors", tensors, notes)
        save_tensors(self.out / "weights.safetensors", self.average, notes)

    def resume(self) -> None:
        """Go on from state.safetensors if there is one."""
        path = self.out / "state.safetensors"
        if not path.exists():
            return
        tensors, notes = load_tensors(path)
        load_into(self.stage.module, with_prefix(tensors, "model."))
        for name, value in with_prefix(tensors, "average.").items():
            self.average[name].copy_(value)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in with_prefix(tensors, "optimiser.").items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": states})
        self.step, self.elapsed_s = int(notes["step"]), float(notes["elapsed_s"])
        log.info("resumed at step %d, %.0f s", self.step, self.elapsed_s)

    def score_average(self) -> dict[str, float]:
        """Validation scores of the moving average."""
        current = {name: value.clone() for name, value in self.stage.module.state_dict().items()}
        load_into(self.stage.module, self.average)
        self.stage.module.eval()
        scores = self.stage.validate(self.phase)
        self.stage.module.train()
        load_into(self.stage.module, current)
        return scores


def parameter_groups(module: nn.Module, shares: dict[str, float]) -> list[dict[str, Any]]:
    """What is trained: parameters with a key of `shares` in their name at that share of the learning rate.

    The first key that is found counts; where none is, the share is 1.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            share = next((share for part, share in shares.items() if part in name), 1.0)
            groups.setdefault(share, []).append(parameter)
    return [{"params": params, "share": share} for share, params in groups.items()]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean gradient over the processes of a run; nothing where there is one."""
    if not peers.is_initialized():
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    peers.all_reduce(flat)
    flat /= peers.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def shared_clock(elapsed_s: float) -> float:
    """The first process's clock, so that all of them stop at the same step."""
    if not peers.is_initialized():
        return elapsed_s
    clock = torch.tensor([elapsed_s], dtype=torch.float64)
    peers.broadcast(clock, 0)
    return float(clock)


def train(run: Run) -> None:
    """Step until the stage's time is over; log, score and save on the clock."""
    run.out.mkdir(parents=True, exist_ok=True)
    run.resume()
    run.stage.module.train()
    last = {"log": run.elapsed_s, "save": run.elapsed_s, "score": run.elapsed_s}
    images: int = 0
    sums: dict[str, list[float]] = {}
    is_first = not peers.is_initialized() or peers.get_rank() == 0
    run.elapsed_s = shared_clock(run.elapsed_s)
    bar = progress_bar(run, is_shown=is_first)
    while run.elapsed_s < run.total_s:
        started = time.monotonic()
        images += run.phase.batch
        for name, value in run.take_step().items():
            sums.setdefault(name, []).append(value)
        run.elapsed_s = shared_clock(run.elapsed_s + time.monotonic() - started)
        bar.update(run.elapsed_s - bar.n)
        if not is_first:
            continue
        if run.elapsed_s - last["log"] >= 20:
            _report(
                run,
                {name: sum(v) / len(v) for name, v in sums.items()},
                images / (run.elapsed_s - last["log"]),
            )
            last["log"], images, sums = run.elapsed_s, 0, {}
        if run.elapsed_s - last["score"] >= run.recipe["score_every_s"]:
            started = time.monotonic()
            _report(run, run.score_average(), 0.0)
            run.elapsed_s += time.monotonic() - started
            last["score"] = last["log"] = run.elapsed_s
        if run.elapsed_s - last["save"] >= run.recipe["save_every_s"]:
            run.save()
            last["save"] = run.elapsed_s
    if is_first:
        run.save()
        _report(run, run.score_average(), 0.0)


def progress_bar(run: Run, *, is_shown: bool) -> "tqdm[Any]":
    """Seconds done of the stage's and those still to come; on a terminal only."""
    return tqdm(
        total=run.total_s,
        initial=run.elapsed_s,
        unit="s",
        desc=run.out.name,
        disable=None if is_shown else True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s, {remaining} left",
    )


def choose_device() -> torch.device:
    """Take the process's own GPU, else the CPU: whatever is made from now on is made there."""
    rank = int(os.environ.get("RANK", "0"))
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if is_gpu else torch.device("cpu")
    torch.set_default_device(device)
    return device


def _report(run: Run, numbers: dict[str, float], images_per_s: float) -> None:
    line = {
        "step": run.step,
        "minutes": round(run.elapsed_s / 60, 2),
        "side": run.phase.side,
        "lr": round(run.learning_rate(), 6),
        "images_per_s": round(images_per_s, 2),
        **{name: round(value, 4) for name, value in numbers.items()},
    }
    with (run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    draw_curves(run.out / "log.jsonl", run.out / "curve.svg")
    log.info("%s", line)


def in_a_hurry(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """The settings of a stage with `share` of its minutes."""
    phases = [phase | {"minutes": share * phase["minutes"]} for phase in settings["phase"]]
    return settings | {"phase": phases}


def main() -> None:
    """Train one stage of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", required=True, help="a section of the recipe, such as joint")
    for name in ("recipe", "data", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--start", type=Path, action="append", default=[], help="weights to start from; may repeat"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hurry", type=float, default=1.0, help="so much of the recipe's minutes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    device = choose_device()
    if "WORLD_SIZE" in os.environ:  # one process per core is twice as fast as one process with two threads
        peers.init_process_group("nccl" if device.type == "cuda" else "gloo")
        recipe["seed"] += peers.get_rank()
    torch.manual_seed(recipe["seed"])
    stage = build_stage(options.stage, recipe, options.data, options.cache, options.start)
    settings = in_a_hurry(recipe[options.stage], options.hurry)
    with logging_redirect_tqdm():
        train(Run(stage, settings, options.out))


if __name__ == "__main__":
    main()
