"""What people use today instead of gradscope, at every step, computed from descriptions of each tool."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AfterStep = Callable[[Tensor], None]  # called with the loss, after optimizer.step()


@contextmanager
def nothing(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Train bare."""
    yield lambda loss: None


def _hook_leaves(model: nn.Module, read: Callable[[str, Any, Tensor], None]) -> list[Any]:
    """Call read(name, inputs, output) in a forward hook of every leaf module."""
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:

            def hook(_: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                read(name, inputs, output)

            handles.append(module.register_forward_hook(hook))
    return handles


@contextmanager
def item_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Read mean, standard deviation and zero share of every output, and every gradient's norm, by .item()."""
    values: dict[str, float] = {}

    def read(name: str, inputs: Any, output: Tensor) -> None:
        values[f"{name}.mean"] = output.mean().item()
        values[f"{name}.std"] = output.std().item()
        values[f"{name}.zeros"] = (output == 0).float().mean().item()

    def after(loss: Tensor) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                values[name] = parameter.grad.norm().item()

    handles = _hook_leaves(model, read)
    yield after
    for handle in handles:
        handle.remove()


@contextmanager
def fastai_statistics(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Compute fastai's ActivationStats of every output: mean, deviation, near-zero share, histogram."""
    rows: list[list[Any]] = []

    def read(name: str, inputs: Any, output: Tensor) -> None:
        out = output.detach().float()
        near_zero = (out <= 0.05).long().sum().item() / max(out.numel(), 1)
        rows.append([out.mean().item(), out.std().item(), near_zero, out.histc(40, 0, 10)])

    handles = _hook_leaves(model, read)
    yield lambda loss: rows.clear()
    for handle in handles:
        handle.remove()


@contextmanager
def composer_statistics(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Compute what Composer's ActivationMonitor and OptimizerMonitor keep.

    That is: norm, mean, kurtosis and maximum over the last axis of every input and output, and the norms of
    gradients, weights and moments with their cosine.
    """
    values: dict[str, float] = {}

    def four(name: str, value: Tensor) -> None:
        centred = value - value.mean(dim=-1, keepdim=True)
        fourth, second = centred.pow(4).mean(dim=-1), centred.pow(2).mean(dim=-1)
        values[f"{name}.norm"] = torch.linalg.vector_norm(value, dim=-1).mean().item()
        values[f"{name}.mean"] = value.mean().item()
        values[f"{name}.kurtosis"] = (fourth / second**2).mean().item()
        values[f"{name}.max"] = value.max(dim=-1).values.mean().item()

    def read(name: str, inputs: Any, output: Tensor) -> None:
        for index, value in enumerate((*inputs, output)):
            if isinstance(value, Tensor) and value.is_floating_point():
                four(f"{name}.{index}", value.detach())

    def after(loss: Tensor) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            gradient, moment = parameter.grad, optimizer.state[parameter].get("exp_avg")
            values[f"{name}.gradient"] = torch.linalg.vector_norm(gradient).item()
            values[f"{name}.weight"] = torch.linalg.vector_norm(parameter.detach()).item()
            if moment is not None:
                values[f"{name}.moment"] = torch.linalg.vector_norm(moment).item()
                cosine = nn.functional.cosine_similarity(gradient.flatten(), moment.flatten(), dim=0)
                values[f"{name}.cosine"] = cosine.item()

    handles = _hook_leaves(model, read)
    yield after
    for handle in handles:
        handle.remove()


@contextmanager
def tensorboard_histograms(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Write a TensorBoard histogram of every weight and gradient."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        step = 0

        def after(loss: Tensor) -> None:
            nonlocal step
            for name, parameter in model.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, step)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradients/{name}", parameter.grad, step)
            step += 1

        yield after


@contextmanager
def wandb_watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Let wandb.watch(log="all", log_freq=1) log offline."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        run.watch(model, log="all", log_freq=1)
        yield lambda loss: run.log({"loss": loss.item()})
        run.finish()


@contextmanager
def prototype(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[AfterStep]:
    """Compute sum, dot, aminmax of every output, one dot for every signal, gradient and weight, unfused."""
    values: list[Tensor] = []

    def keep_signal(signal: Tensor) -> None:
        flat = signal.reshape(-1)
        values.append(torch.dot(flat, flat))

    def read(name: str, inputs: Any, output: Tensor) -> None:
        flat = output.detach().reshape(-1)
        values.extend((flat.sum(), torch.dot(flat, flat), *flat.aminmax()))
        if output.requires_grad:
            output.register_hook(keep_signal)

    def after(loss: Tensor) -> None:
        for parameter in model.parameters():
            for tensor in (parameter.detach(), parameter.grad):
                if tensor is not None:
                    values.append(torch.dot(tensor.reshape(-1), tensor.reshape(-1)))
        torch.stack(values).tolist()
        values.clear()

    handles = _hook_leaves(model, read)
    yield after
    for handle in handles:
        handle.remove()


# Name in the table -> (variant, the module that must be installed, "" if none)
PEERS = {
    ".item() hooks": (item_hooks, ""),
    "fastai's statistics": (fastai_statistics, ""),
    "Composer's statistics": (composer_statistics, ""),
    "TensorBoard histograms": (tensorboard_histograms, "tensorboard"),
    "wandb.watch": (wandb_watch, "wandb"),
    "unfused prototype": (prototype, ""),
}
