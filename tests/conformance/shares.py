"""Training a tiny recipe by one process or by several, in double precision, with the random numbers of the whole batch.

How a batch is shared out must not matter to the weights. A process draws its own noise, so that two of them make other draws
than one does; here each is given its rows of what one process would have drawn, and what is left is the loop: gradients and
their means, updates of a batch one after another, what is precomputed by shares, the learning rate's schedule.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from editkit import recipe
from editkit.training import checkpoint
from editkit.training.fit import fit
from editkit.training.method import Method
from editkit.training.plan import Plan
from editkit.training.rundir import RunDir
from editkit.training.share import processes
from tests.tiny import shrink

BATCH, UPDATES, WORLD = 6, 3, 2
ALIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


class WholeBatch(TorchFunctionMode):
    """Draws for the whole batch and takes this process's rows; keeps single precision out of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.world = processes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func in ALIKE:
            func, args, kwargs = ALIKE[func], (args[0].shape,), {"device": args[0].device, "dtype": args[0].dtype} | kwargs
        if func in (torch.rand, torch.randn, torch.randint) and kwargs.get("generator") is None:
            return self._rows(func, args, kwargs)
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.to and torch.float32 in args:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        return func(*args, **kwargs)

    def _rows(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Draw; of (share, ...) or (k x share, ...), k drawings of the share one after another, take the rows of the whole."""
        bounds, shape = _split(func, args, kwargs)
        share = BATCH // self.world
        if not shape or shape[0] == 0 or shape[0] % share:
            return func(*bounds, shape, **kwargs)
        drawn = func(*bounds, (shape[0] // share, BATCH, *shape[1:]), **kwargs)
        return drawn[:, self.rank * share : (self.rank + 1) * share].reshape(shape)


def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Return the bounds and the shape among the arguments of a drawing function; `size` leaves the keywords."""
    if "size" in kwargs:
        return args, tuple(kwargs.pop("size"))
    if func is torch.randint or isinstance(args[0], (tuple, list, torch.Size)):
        return args[:-1], tuple(args[-1])
    return (), args


def train(name: str, assets: Path, folder: Path, *changes: str) -> Method:
    """Train a recipe in a folder for three updates at least, with the other processes of the group if there is one."""
    world = processes()[1]
    length = f"trainer.steps={UPDATES}", f"trainer.batch_size={BATCH}", f"trainer.devices={world}"
    cfg = recipe.compose([*shrink(name, assets), *length, "trainer.precision=32", *changes])
    with double():
        torch.manual_seed(0)
        method = recipe.build(cfg, "method")
        with WholeBatch():
            method.prepare_training()
        method.double()
        as_whole(method)
        fit(method, recipe.build(cfg, "data").train_dataset(), Plan(**recipe.frozen(cfg)["trainer"]), RunDir(folder))
    return method


def exported(*task: Any) -> dict[str, Tensor]:
    """Train, and return the tensors that the first process would export."""
    method = train(*task)
    with method.averaged_weights():
        return {name: tensor.clone() for artefact in method.artefacts() for name, tensor in artefact.tensors.items()}


def held(*task: Any) -> int:
    """Train, and return the bytes of parameters, gradients and optimiser state that this process held at a step."""
    sizes: list[int] = []

    def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
        tensors = [*parameters, *(p.grad for p in parameters), *state]
        sizes.append(sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors))

    hook = register_optimizer_step_post_hook(count)
    train(*task)
    hook.remove()
    return max(sizes)


def as_whole(method: Method) -> None:
    """Let a prepared method take its steps on double precision and with its rows of the whole batch's draws."""
    step, precompute = method.training_step, method.precompute

    def training_step(batch: Any, batch_idx: int) -> None:
        assert method.stepper is not None
        torch.manual_seed(method.stepper.images)
        with WholeBatch():
            step({name: _double(value) for name, value in batch.items()}, batch_idx)

    def precomputed(dataset: Any) -> None:
        with WholeBatch():
            precompute(_Double(dataset))

    method.prepare_training = lambda: None
    method.training_step, method.precompute = training_step, precomputed


class _Double:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: _double(value) for name, value in self.dataset[index].items()}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(map(_double, value)) if type(value) in (list, tuple) else value


@contextlib.contextmanager
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def apart(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the largest relative distance of two tensors of the same name."""
    assert left.keys() == right.keys()
    scale = {name: tensor.norm().clamp(min=1e-300) for name, tensor in left.items()}
    return max(float((tensor - right[name]).norm() / scale[name]) for name, tensor in left.items())


def weights(folder: Path) -> dict[str, Tensor]:
    """Return what a run in a folder ended with."""
    return checkpoint.load(checkpoint.newest(RunDir(folder).checkpoints)).weights


class Pair:
    """Two processes that work together, on one thing after another."""

    def __init__(self) -> None:
        forks = multiprocessing.get_context("forkserver")  # the libraries are imported once for both
        forks.set_forkserver_preload([__name__, "diffusers", "transformers", "editkit.methods.foundation.ddpm"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [forks.Pipe() for _ in range(WORLD)]
        self.ends = [own for own, _ in pipes]
        self.children = [forks.Process(target=work, args=(rank, port, end), daemon=True) for rank, (_, end) in enumerate(pipes)]
        for child in self.children:
            child.start()

    def run(self, function: Callable[..., Any], *task: Any) -> list[Any]:
        """Call a function in both and return the two answers.

        Raises:
            RuntimeError: with the traceback of what went wrong in either.
        """
        for end in self.ends:
            end.send((function, task))
        if not all(end.poll(600) for end in self.ends):
            raise TimeoutError(f"two processes do not end {task}")
        answers = [end.recv() for end in self.ends]
        for _, wrong in answers:
            if wrong:
                raise RuntimeError(wrong)
        return [answer for answer, _ in answers]

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.join()


def work(rank: int, port: int, tasks: Connection) -> None:
    """Do what is asked for, as one process of the pair."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    while True:
        function, task = tasks.recv()
        try:
            answer = function(*task)
            tasks.send((None if isinstance(answer, Method) else answer, ""))
        except Exception:
            tasks.send((None, traceback.format_exc()))
