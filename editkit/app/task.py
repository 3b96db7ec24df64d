"""Runs a method's own step that is not training, and prints the figures that it returns."""

from __future__ import annotations

from editkit.app.options import TaskOptions
from editkit.errors import UsageError, suggestion
from editkit.recipe import build, compose


def run_task(options: TaskOptions) -> int:
    """Run `options.task` of the method on the recipe's data and print its figures, one a line; return 0.

    Raises:
        UsageError: the method has no such task; those that it has are listed.
    """
    import torch

    cfg = compose(options.recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)
    method = build(cfg, "method")
    tasks = method.tasks
    if options.task not in tasks:
        hint = suggestion(options.task or "", tasks)
        raise UsageError(f"{options.method} has no task {options.task!r}.{hint} It has: {', '.join(tasks) or 'none'}.")
    torch.manual_seed(options.seed)
    method.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for name, figure in tasks[options.task](build(cfg, "data")).items():
        print(f"{name:24} {figure}")
    return 0
