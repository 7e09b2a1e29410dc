"""Names in a rebuilt module: dotted paths that are free, beside what the original called its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Tree:
    """A module that submodules and tensors are added to under dotted paths."""

    def __init__(self) -> None:
        self.root = nn.Module()

    def add_module(self, path: str, module: nn.Module) -> str:
        """Put `module` at `path`, or at the next free one; returns where it is."""
        path = self._free(path)
        container, leaf = self._container(path)
        container.add_module(leaf, module)
        return path

    def add_tensor(self, path: str, value: Tensor) -> str:
        """Put a parameter, or a tensor as a buffer, at `path`, or at the next free one; returns where it is."""
        path = self._free(path)
        container, leaf = self._container(path)
        if isinstance(value, nn.Parameter):
            container.register_parameter(leaf, value)
        else:
            container.register_buffer(leaf, value)
        return path

    def _container(self, path: str) -> tuple[nn.Module, str]:
        *parents, leaf = path.split(".")
        container = self.root
        for name in parents:
            if not hasattr(container, name):
                container.add_module(name, nn.Module())
            container = getattr(container, name)
        return container, leaf

    def _free(self, path: str) -> str:
        """A dotted path that names nothing yet, on a branch that holds no module of its own."""
        path = self._beside_modules(path)
        candidate, count = path, 0
        while self._taken(candidate):
            count += 1
            candidate = f"{path}_{count}"
        return candidate

    def _beside_modules(self, path: str) -> str:
        """`a.b.c` as `a.b_c` where `a.b` is a module of its own, which holds nothing else."""
        container: Any = self.root
        parts = path.split(".")
        for depth, name in enumerate(parts[:-1]):
            container = getattr(container, name, None)
            if container is None:
                return path
            if type(container) is not nn.Module:
                return ".".join([*parts[:depth], "_".join(parts[depth:])])
        return path

    def _taken(self, path: str) -> bool:
        container: Any = self.root
        for name in path.split("."):
            container = getattr(container, name, None)
            if container is None:
                return False
        return True
