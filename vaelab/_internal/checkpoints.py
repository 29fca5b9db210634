"""Checkpoints: a safetensors file from which training goes on as if it had not stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .machine import to_json, write_atomically

__all__ = ["CheckpointError", "digest", "resume", "write"]


class CheckpointError(ValueError):
    """A file is not a checkpoint, is damaged, or belongs to another training."""


def write(run, path: Path) -> None:
    """Write everything that changes during training."""
    from safetensors.torch import save

    tensors = {"rng": torch.get_rng_state()}
    if run.model.device.type == "cuda":
        tensors["rng_cuda"] = torch.cuda.get_rng_state(run.model.device)
    tensors |= {f"model.{name}": t for name, t in run.model.state_dict().items()}
    tensors |= {f"best.{name}": t for name, t in run.best.items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items()}
    progress = {
        "settings": run.settings,
        "history": asdict(run.history),
        "best_score": run.best_score,
        "rng": run.rng.bit_generator.state,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    progress["sha256"] = hashlib.sha256(save(tensors)).hexdigest()
    write_atomically({path: save(tensors, metadata={"vaelab": to_json(progress)})})


def resume(run, history_type: type, path: Path) -> None:
    """Set a training to the state that a file holds.

    Raises
    ------
    CheckpointError
        The file cannot be read, or it is from another training.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "vaelab" not in metadata:
                raise ValueError("it does not hold a training")
            progress = json.loads(metadata["vaelab"])
            # Copies: the file must not be in use when it is replaced after the next epoch.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if hashlib.sha256(save(tensors)).hexdigest() != progress["sha256"]:
            raise ValueError("its content has changed since it was written")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of vaelab: {error}. Name another file, or "
            "remove this one to start again."
        ) from None
    then, now = progress["settings"], json.loads(to_json(run.settings))
    may_differ = {"patience"}
    if now["epochs"] > then["epochs"]:
        may_differ.add("epochs")
    if changed := [name for name in now if then.get(name) != now[name] and name not in may_differ]:
        name = changed[0]
        raise CheckpointError(
            f"{path} is from another run: {name} was {then.get(name)} there and is {now[name]} "
            "here. Repeat that run, or name another checkpoint."
        )

    def with_prefix(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    run.model.load_state_dict(with_prefix("model."))
    run.best = {name: t.to(run.model.device) for name, t in with_prefix("best.").items()}
    state = run.optimizer.state_dict()
    state["state"] = {}
    for name, tensor in with_prefix("optimizer.").items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = tensor
    run.optimizer.load_state_dict(state)
    torch.set_rng_state(tensors["rng"])
    if "rng_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng_cuda"], run.model.device)
    run.rng.bit_generator.state = progress["rng"]
    run.history = history_type(**progress["history"])
    run.best_score = progress["best_score"]


def digest(cells) -> str:
    """A hash of the cells, which also depends on their order."""
    state = hashlib.sha256("\n".join(cells.gene_names).encode())
    for _, part in cells.parts():
        x = [part.x] if isinstance(part.x, Tensor) else [part.x.data, part.x.indices, part.x.indptr]
        for values in (*x, part.library, part.batch, part.label, part.observed):
            if values is not None:
                state.update(np.ascontiguousarray(torch.as_tensor(values).cpu()))
    return state.hexdigest()[:16]
