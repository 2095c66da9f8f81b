"""How one tensor is related to another: rounded to FP8 or INT8, experts in another order, a low-rank difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Relation = Literal["equal", "permuted", "fp8", "int8", "low_rank", "other"]

SEGMENT = 128
MAX_SEGMENTS = 64
ON_GRID = 0.97
OFF_GRID = 0.8
CLOSE = 0.1
LOW_RANK_ENERGY = 0.9
STORAGE_ERROR = 2.0**-7
MAX_STEP = 16


def relation_of(rollout: list[torch.Tensor], train: list[torch.Tensor]) -> tuple[Relation, float]:
    """Relates two stacks of equally shaped tensors (one tensor, or a layer's experts).

    Args:
        rollout: The rollout side's tensors.
        train: The training side's.

    Returns:
        The relation, and the norm of the difference over the norm of the rollout side.
    """
    import torch

    if all(torch.equal(one, other) for one, other in zip(rollout, train, strict=True)):
        return "equal", 0.0
    left = torch.stack([tensor.float() for tensor in rollout])
    right = torch.stack([tensor.float() for tensor in train])
    relative = float((right - left).norm() / left.norm().clamp(min=1e-30))
    if _is_permuted(rollout, train):
        return "permuted", relative
    if relative < CLOSE and left.dim() > 2:
        for kind in ("fp8", "int8"):
            shares = [grid_share(side, kind) for side in (left, right)]
            if max(shares) >= ON_GRID and min(shares) <= OFF_GRID:
                return kind, relative
    if left.dim() > 2 and _is_low_rank(left, right):
        return "low_rank", relative
    return "other", relative


def _is_permuted(rollout: list[torch.Tensor], train: list[torch.Tensor]) -> bool:
    """Whether the members are the same in another order; one fused tensor is looked at along its first axis."""
    import torch

    if len(rollout) == 1 and rollout[0].dim() == 3:
        rollout, train = list(rollout[0]), list(train[0])
    if len(rollout) < 2:
        return False

    def names(stack: list[torch.Tensor]) -> list[bytes]:
        return sorted(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in stack)

    return names(rollout) == names(train)


def grid_share(values: torch.Tensor, kind: Literal["fp8", "int8"]) -> float:
    """Share of the entries that lie on an FP8 (e4m3) or INT8 grid, the scale of each segment unknown.

    Rows are cut into segments of 128 entries, so that scales per tensor, row and block of 128 are all seen. Within a
    segment every scale that puts its largest entry on the grid is tried. Values may have been stored in BF16 after the
    rounding, which moves an entry and its scale by up to 2^-8 each; INT8 steps beyond 16 are within that error of any
    number and are not counted.

    Args:
        values: float32 [..., columns].
        kind: Of grid.

    Returns:
        The median over segments of the best share.
    """
    import torch

    rows = values.reshape(-1, values.shape[-1])[:, :SEGMENT]
    rows = rows[:: max(1, rows.shape[0] // MAX_SEGMENTS)].abs().double()
    largest = rows.amax(-1)
    rows, largest = rows[largest > 0], largest[largest > 0]
    if not rows.shape[0]:
        return 0.0
    best = torch.zeros(rows.shape[0], dtype=torch.double)
    steps = torch.arange(8, 16) if kind == "fp8" else torch.arange(1, 128)
    for step in steps.tolist():
        scaled = rows / (largest / step)[:, None]
        if kind == "fp8":
            # A normal number of e4m3 is 8 to 15 times a power of two; entries below 2^-6 of the largest are left out, as
            # they may be subnormal.
            mantissa = torch.frexp(scaled)[0] * 16
            error = (mantissa - mantissa.round()).abs() / mantissa.clamp(min=8)
            counted = rows > largest[:, None] / 64
        else:
            error = (scaled - scaled.round()).abs() / scaled.clamp(min=1.0)
            counted = (scaled < MAX_STEP) & (rows > 0)
        on = ((error <= STORAGE_ERROR) & counted).sum(-1) / counted.sum(-1).clamp(min=1)
        best = torch.maximum(best, torch.where(counted.sum(-1) >= 4, on.double(), 0.0))
    return float(best.median())


def _is_low_rank(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether an eighth of the rank holds 90 % of the difference, beyond what rounding the sum to BF16 adds."""
    import torch

    difference = (right - left).reshape(-1, *left.shape[-2:])[0]
    rank = min(difference.shape) // 8
    if rank < 1:
        return False
    energy = float(difference.square().sum())
    spacing = torch.exp2(torch.frexp(right.reshape(-1, *left.shape[-2:])[0])[1] - 8.0)
    noise = float((spacing.square() / 12).sum())
    if energy < 2.0 * noise:
        return False
    values = torch.svd_lowrank(difference, q=min(2 * rank, min(difference.shape)), niter=4)[1]
    # The leading directions hold their own part of the noise as well.
    kept = float(values[:rank].square().sum()) - noise * rank / min(difference.shape)
    return bool(kept >= LOW_RANK_ENERGY * (energy - noise))
