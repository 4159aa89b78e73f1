"""Read a user's reward, ``include/rewards/NAME.py``, without importing it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from llm_bridge.config.include import include_dir

FUNCTION = "compute_score"
# verl passes these by name (verl/experimental/reward_loop/reward_manager/naive.py).
PARAMETERS = ("data_source", "solution_str", "ground_truth", "extra_info")
# The same with a reward model; the function sends its requests to the router.
MODEL_PARAMETERS = ("reward_router_address", "reward_model_tokenizer")
SIGNATURE = f"def {FUNCTION}(data_source, solution_str, ground_truth, extra_info=None, **kwargs)"
# The text is part of the run's plan, which Airflow stores in its database.
MAX_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_NAMED_FUNCTIONS = 5


def available() -> list[str]:
    """Return the names of the rewards in ``include/rewards``."""
    return sorted(f.stem for f in (include_dir() / "rewards").glob("*.py") if _NAME.fullmatch(f.stem))


def place(name: str) -> str:
    """Return the path of a reward as messages name it."""
    return f"include/rewards/{name}.py"


def read(name: str, options: list[str], *, with_model: bool = False) -> str:
    """Return the text of a reward, after a check of everything that can be seen without importing it.

    Args:
        name: One of :func:`available`.
        options: Names of the recipe's options, which the function receives by name.
        with_model: True if the function is called with the address of a reward model, too.

    Raises:
        ValueError: The file cannot be read, is not Python, or has no function that verl can call.
    """
    where = place(name)
    path = Path(include_dir()) / "rewards" / f"{name}.py"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"{where} has {len(data)} bytes, and at most {MAX_BYTES} travel with a run: put data into a file on the "
            "cluster, and its path into an option"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from None
    try:
        tree = ast.parse(text, where)
        compile(text, where, "exec", dont_inherit=True)  # finds more, such as a return outside a function
    except SyntaxError as error:
        code = f": {error.text.strip()}" if error.text else ""
        raise ValueError(f"{where}, line {error.lineno}: {error.msg}{code}") from None
    except ValueError as error:  # a null byte
        raise ValueError(f"{where} is not Python: {error}") from None
    _check_imports(tree, name)
    _check_function(tree, name, options, with_model=with_model)
    return text


def _check_imports(tree: ast.Module, name: str) -> None:
    """Refuse imports of other files in ``include/rewards``: a reward is sent to the cluster as one file."""
    others = set(available()) - {name}
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.partition(".")[0] in others]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found = [module] if node.level or module.partition(".")[0] in others else []
        if found:
            raise ValueError(
                f"{place(name)}, line {getattr(node, 'lineno', '?')}: imports {found[0]}, but only this file is sent "
                "to the cluster: copy the functions into it, or install them there as a package"
            )


def _check_function(tree: ast.Module, name: str, options: list[str], *, with_model: bool) -> None:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = next((node for node in reversed(functions) if node.name == FUNCTION), None)
    if found is None:
        if _binds(tree, FUNCTION):
            return  # imported or assigned: the trial in stage prepare calls it
        names = ", ".join(node.name for node in functions[:_MAX_NAMED_FUNCTIONS])
        raise ValueError(
            f"{place(name)} has no function {FUNCTION} (it has {names or 'no function'}): write '{SIGNATURE}'"
        )
    if found.decorator_list:
        return  # a decorator may change the parameters
    where = f"{place(name)}, line {found.lineno}: {FUNCTION}"
    arguments = found.args
    by_name = [arg.arg for arg in (*arguments.args, *arguments.kwonlyargs)]
    passed = [*PARAMETERS, *(MODEL_PARAMETERS if with_model else ())]
    lacking = [parameter for parameter in passed if parameter not in by_name]
    if lacking and arguments.kwarg is None:
        raise ValueError(
            f"{where} does not take {', '.join(lacking)}, which verl passes: write '{SIGNATURE}'"
        )
    unknown = [option for option in options if option not in by_name]
    if unknown and not (arguments.kwarg and _reads(found, arguments.kwarg.arg)):
        own = [parameter for parameter in by_name if parameter not in passed]
        unread = f" (**{arguments.kwarg.arg} is not read)" if arguments.kwarg else ""
        raise ValueError(
            f"{where} does not take the option {', '.join(unknown)}; it takes {', '.join(own) or 'no option'}{unread}"
        )
    if lacking := [parameter for parameter in _required(arguments) if parameter not in {*passed, *options}]:
        raise ValueError(
            f"{where} needs {', '.join(lacking)}: set it beside 'name' in the recipe, or give it a default"
        )


def _reads(function: ast.AST, name: str) -> bool:
    """Return True if a function reads a variable."""
    return any(
        isinstance(node, ast.Name) and node.id in (name, "locals", "eval", "exec")
        for node in ast.walk(function)
    )


def _required(arguments: ast.arguments) -> list[str]:
    """Return the parameters without a default; a positional-only one cannot be passed by name."""
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [arg.arg for arg in positional[: len(positional) - len(arguments.defaults)]]
    only = {arg.arg for arg in arguments.posonlyargs}
    names = [f"{name} (positional-only)" if name in only else name for name in required]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return names + [arg.arg for arg, default in keywords if default is None]


def _binds(tree: ast.Module, name: str) -> bool:
    """Return True if a module binds a name other than by ``def`` at its top level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and (node.asname or node.name) in (name, "*"):
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            # In a class it is no function of the module; in an if or try at the top it is.
            owners = [parent for parent in ast.walk(tree) if node in getattr(parent, "body", [])]
            if all(isinstance(parent, ast.If | ast.Try | ast.ExceptHandler) for parent in owners):
                return True
    return False
