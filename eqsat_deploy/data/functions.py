"""Batches out of somebody's Python: `module:function` or `file.py:function`, which returns or yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from eqsat_deploy.errors import InputError
from eqsat_deploy.specs import call_located, find_object


def batches_of(spec: str) -> Iterable[Any]:
    """What the function returns, called without arguments; or what has that name, where it is iterable itself.

    Raises:
        InputError: there is none, it fails, or it gives no iterable.
        UnknownNameError: its module or file has nothing of that name.
    """
    found = find_object(spec)
    made = call_located(spec, found) if callable(found) else found
    if not isinstance(made, Iterable) or isinstance(made, Tensor | Mapping | str):
        raise InputError(f"{spec}: an iterable of batches is expected, not {type(made).__name__}")
    return made


def limited(spec: str, limit: int) -> Iterator[Any]:
    """The batches, until they have `limit` samples."""
    batches = iter(batches_of(spec))
    end, samples = object(), 0
    while samples < limit:
        batch = call_located(spec, lambda: next(batches, end))
        if batch is end:
            return
        yield batch
        samples += next((len(v) for v in pytree.tree_leaves(batch) if isinstance(v, Tensor) and v.dim()), 1)
