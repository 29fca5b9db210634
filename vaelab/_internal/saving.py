"""Saved models: the parameters as safetensors, and a card in JSON next to them."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Self

import torch

from .machine import find_device, to_json, write_atomically

__all__ = ["ParameterFileError", "Savable"]


# Names in the cells that a model was fitted to, and those of the batches that were added to it.
NAMES = ("gene_names", "batch_names", "label_names", "new_batches")


class ParameterFileError(ValueError):
    """A file of saved parameters is damaged, or does not belong to the model or to its card."""


class Savable:
    """``save`` and ``load`` for a module that has a ``configuration`` and ``NAMES``."""

    def save(self, path: str | Path, half: bool = False, overwrite: bool = False, **card) -> Path:
        """Write ``path.safetensors`` (parameters) and ``path.json`` (the card).

        Parameters
        ----------
        path
            Path of the files, with or without an ending. Missing folders are made.
        half
            True to round the parameters to 16 bits: three digits, and half the size.
        overwrite
            True to replace a saved model of this name.
        card
            Anything else that the card should hold, such as data, seed and scores; values as in
            JSON.

        Returns
        -------
        The path of the parameters.

        Raises
        ------
        FileExistsError
            A saved model has this name, and ``overwrite`` is False.
        TypeError
            The card holds a value that JSON cannot hold.
        ValueError
            The card has a name that the model writes itself, or a parameter is too large for 16
            bits.
        """
        from safetensors.torch import save

        weights, card_path = _paths(path)
        if not overwrite and (there := [f for f in (weights, card_path) if f.is_file()]):
            raise FileExistsError(
                f"{there[0]} exists, and save does not replace it. Choose another name, or write "
                "overwrite=True."
            )
        weights.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.contiguous() for name, t in self.state_dict().items()}
        if half:
            tensors |= {name: p.detach().half() for name, p in self.named_parameters()}
            if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
                raise ValueError("A parameter is too large for 16 bits: save with half=False.")
        parameters = save(tensors)
        about = {
            "model": type(self).__name__,
            "configuration": self.configuration,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        proof = {
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "sha256": hashlib.sha256(parameters).hexdigest(),
            **{name: getattr(self, name) for name in NAMES},
        }
        if taken := [name for name in card if name in about | proof]:
            raise ValueError(
                f"The model writes {taken[0]!r} into its card: choose another name for yours."
            )
        text = to_json(about | card | proof, indent=1, ensure_ascii=False) + "\n"
        write_atomically({weights: parameters, card_path: text.encode()})
        return weights

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """The model that :meth:`save` wrote; its card is ``model.card``.

        Raises
        ------
        FileNotFoundError
            The parameters or the card are missing.
        ParameterFileError
            The file is from another model, truncated, changed, or not safetensors.
        ValueError
            This machine does not have the device.
        """
        from safetensors.torch import load

        weights, card_path = _paths(path)
        for file in (weights, card_path):
            if not file.is_file():
                raise FileNotFoundError(
                    f"No file {file}: a saved model is a .safetensors and a .json file."
                )
        try:
            card = json.loads(card_path.read_text(encoding="utf-8"))
            kind, configuration, digest = card["model"], card["configuration"], card["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise ParameterFileError(f"{card_path} is not a model's card: {error!r}.") from None
        if kind != cls.__name__:
            raise ParameterFileError(
                f"{weights} holds {kind} parameters: load it with vaelab.{kind}.load."
            )
        parameters = weights.read_bytes()
        if hashlib.sha256(parameters).hexdigest() != digest:
            raise ParameterFileError(
                f"{weights} is not the file that {card_path.name} describes ({len(parameters):,} "
                "bytes, another sha256): it was cut off, changed, or is from another training. "
                "Copy both files again, or train again."
            )
        try:
            model = cls(**configuration).to(getattr(torch, card.get("dtype", "float32")))
            model.load_state_dict(load(parameters))
            for name in NAMES:
                setattr(model, name, tuple(card.get(name) or ()) or None)
            n_names, n_genes = len(model.gene_names or ()), configuration["n_genes"]
            if n_names not in (0, n_genes):
                raise ValueError(f"the card names {n_names} genes, the model has {n_genes}")
        except Exception as error:
            reason = " ".join(str(error).split())  # torch's messages have several lines
            raise ParameterFileError(
                f"{weights} and its card do not fit a {kind} of this version of vaelab: {reason}"
            ) from None
        model.card = card
        return model.to(find_device(device)).eval()


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path).expanduser()
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
