"""Muon for the matrices inside layers, AdamW for everything else, in one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of each matrix by values near 1, with a quintic Newton-Schulz iteration.

    Args:
        matrices: Shape (count, rows, cols).

    Returns:
        Same shape and dtype.

    Source: Muon (Jordan et al., 2024). Computed in the given dtype: on a CPU without bfloat16 units float32 is faster.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def split_parameters(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort trainable parameters into (matrices inside layers, other matrices, vectors).

    Muon is made for weights that map hidden states to hidden states; embeddings, patch filters and output heads see
    sparse or raw inputs and stay with AdamW. Vectors (norms, biases) get no weight decay.
    """
    hidden, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim == 2 and ".layers." in name and "embed" not in name:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    return hidden, matrices, vectors


class MuonAdamW(Optimizer):
    """Muon and AdamW side by side; processes of a distributed run share the orthogonalisation.

    Matrices of one shape are orthogonalised as one batch, which on a CPU is several times faster than one by one. The
    gradients must already be equal in all processes (as after `DistributedDataParallel`).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_learning_rate: float,
        adam_learning_rate: float,
        weight_decay: float,
        adam_betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
    ) -> None:
        """Build the groups from `split_parameters`; step sizes are changed through the groups' `lr`.

        Args:
            model: Its trainable parameters are optimised.
            muon_learning_rate: Step size of orthogonalised updates.
            adam_learning_rate: Step size of AdamW.
            weight_decay: Decoupled decay of matrices, scaled by `adam_learning_rate`'s schedule for both kinds.
            adam_betas: Decay rates of AdamW's moments.
            momentum: Muon's (Nesterov) momentum.
        """
        hidden, matrices, vectors = split_parameters(model)
        decay_ratio = adam_learning_rate / muon_learning_rate
        groups = [
            {
                "params": hidden,
                "lr": muon_learning_rate,
                "weight_decay": weight_decay * decay_ratio,
                "is_muon": True,
            },
            {
                "params": matrices,
                "lr": adam_learning_rate,
                "weight_decay": weight_decay,
                "is_muon": False,
            },
            {
                "params": vectors,
                "lr": adam_learning_rate,
                "weight_decay": 0.0,
                "is_muon": False,
            },
        ]
        defaults = {"betas": adam_betas, "momentum": momentum, "eps": 1e-8}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters once; `closure` recomputes the loss as in `torch.optim`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if group["is_muon"]:
                self._muon_step(parameters, group)
            else:
                self._adam_step(parameters, group)
        return loss

    def _muon_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        buffers = self._state(parameters, "momentum_buffer")
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = share_orthogonalisation(directions)
        for parameter, update in zip(parameters, updates, strict=True):
            rows, cols = parameter.shape
            parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5)

    def _adam_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        first, second = (
            self._state(parameters, "exp_avg"),
            self._state(parameters, "exp_avg_sq"),
        )
        group["steps"] = group.get("steps", 0) + 1
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        scale = torch._foreach_sqrt(torch._foreach_div(second, 1 - beta2 ** group["steps"]))
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(parameters, first, scale, -group["lr"] / (1 - beta1 ** group["steps"]))

    def _state(self, parameters: Iterable[nn.Parameter], name: str) -> list[torch.Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def share_orthogonalisation(directions: list[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalise matrices in batches of one shape, each process doing its share, and exchange the results."""
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, direction in enumerate(directions):
        by_shape[direction.shape].append(index)
    flat = torch.zeros(sum(direction.numel() for direction in directions))
    updates = [
        part.view(direction.shape)
        for part, direction in zip(
            flat.split([direction.numel() for direction in directions]),
            directions,
            strict=True,
        )
    ]
    for indices in by_shape.values():
        mine = indices[rank::num_processes]
        if mine:
            results = orthogonalise(torch.stack([directions[index] for index in mine]))
            for index, result in zip(mine, results, strict=True):
                updates[index].copy_(result)
    if num_processes > 1:
        dist.all_reduce(flat)
    return updates
