"""Warnings are errors (see pyproject.toml), also those that torch gives once in a process."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def torch_warns_every_time():
    torch.set_warn_always(True)
