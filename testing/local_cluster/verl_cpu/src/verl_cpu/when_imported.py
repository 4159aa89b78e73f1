"""Call a function right after a module was imported, without importing that module."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, then_module: str, function: str) -> None:
        self._module, self._then_module, self._function = module, then_module, function

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)  # the call is made once, and the search below must not find this finder
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            getattr(importlib.import_module(self._then_module), self._function)()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def call(module: str, then_module: str, function: str) -> None:
    """Call ``then_module.function()`` as soon as ``module`` has been imported.

    Args:
        module: Dotted name; if it was imported before, the call is made at once.
        then_module: Dotted name of the function's module, imported only for the call.
        function: Name of the function.
    """
    if module in sys.modules:
        getattr(importlib.import_module(then_module), function)()
        return
    sys.meta_path.insert(0, _Finder(module, then_module, function))
