"""Hidden states of a transformers model, free and with the rollout engine's states put in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.layer_sites import (
    ACTIVATION,
    ATTENTION,
    DOWN_PROJ,
    EMBEDDING,
    EXPERTS,
    FINAL_NORM,
    GATE_UP,
    O_PROJ,
    QKV,
    ROUTER,
    SITES,
    STREAM,
    Site,
    key,
)
from mismatch_probe.errors import CaptureError
from mismatch_probe.scorers.layer_states import States

if TYPE_CHECKING:
    import torch

Given = Mapping[str, npt.NDArray[np.float32]]
# What lies between two sites: the first one's output is replaced, the second one's input is read.
_BETWEEN = {ATTENTION: (QKV, O_PROJ), ACTIVATION: (GATE_UP, DOWN_PROJ)}
_FINAL_NORMS = ("norm", "final_layernorm", "ln_f")


class LayerStateReader:
    """Reads one model; hooks are there only while a forward runs.

    Args:
        model: A transformers causal LM.

    Raises:
        CaptureError: It has no decoder layers of a known kind.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._root, self._layers = _decoder(model)
        self._norm = next(
            (getattr(self._root, name) for name in _FINAL_NORMS if hasattr(self._root, name)), None
        )

    def free(self, forward: Callable[[], Any]) -> States:
        """The residual stream of a forward as it is.

        Args:
            forward: Runs the model on one sequence.
        """
        kept: States = {}
        with _hooked() as hooks:
            for index, layer in enumerate(self._layers):
                hooks.output(layer, partial(_keep, kept, key(index, STREAM, "out")))
            embedding = self._root.get_input_embeddings()
            hooks.output(embedding, partial(_keep, kept, f"{EMBEDDING}.out"))
            forward()
        return kept

    def layers(self, forward: Callable[[], Any], given: Given) -> States:
        """Every layer fed with the rollout's input of that layer, and the final norm with its own."""
        kept: States = {}
        with _hooked() as hooks:
            for index, layer in enumerate(self._layers):
                self._substitute(hooks, layer, given.get(key(index, STREAM, "in")))
                hooks.output(layer, partial(_keep, kept, key(index, STREAM, "out")))
            if self._norm is not None:
                self._substitute(hooks, self._norm, given.get(f"{FINAL_NORM}.in"))
                hooks.output(self._norm, partial(_keep, kept, f"{FINAL_NORM}.out"))
            forward()
        return kept

    def modules(self, forward: Callable[[], Any], given: Given) -> States:
        """Every module of every layer fed with the rollout's input of that module.

        Substitution cuts all chains at once, so one forward tests every module by itself.
        """
        kept: States = {}
        with _hooked() as hooks:
            for index, layer in enumerate(self._layers):
                found = dict(layer.named_modules())
                is_moe = _find(ROUTER, found) is not None
                for site in SITES:
                    parts = _find(site, found)
                    if parts is not None and (site is not EXPERTS or is_moe):
                        self._site(hooks, kept, given, index, site, parts)
                for name, (first, second) in _BETWEEN.items():
                    parts, reader = _find(first, found), _find(second, found)
                    if parts is not None and reader is not None:
                        self._between(hooks, kept, given, (index, name, first), parts, reader[0])
            forward()
        return kept

    def head_logits(self, given: Given) -> torch.Tensor | None:
        """Logits [tokens, vocabulary] of the LM head on the rollout's final hidden states, or None without them."""
        states = given.get(f"{FINAL_NORM}.out")
        head = self._model.get_output_embeddings()
        if states is None or head is None:
            return None
        logits: torch.Tensor = head(self._tensor(states, next(head.parameters()).dtype))
        return logits

    def _site(
        self, hooks: _Hooks, kept: States, given: Given, index: int, site: Site, parts: Sequence[Any]
    ) -> None:
        rows = given.get(key(index, site.name, "in"))
        if rows is None:
            return
        pieces: dict[int, Any] = {}
        name = key(index, site.name, "out")
        for place, part in enumerate(parts):
            self._substitute(hooks, part, rows)
            if site is ROUTER:
                hooks.router(part, partial(_keep, kept, name))
                continue

            def join(out: Any, place: int = place) -> None:
                import torch

                pieces[place] = _rows(out)
                if len(pieces) == len(parts):
                    _keep(kept, name, torch.cat([pieces[i] for i in range(len(parts))], dim=-1))

            hooks.output(part, join)

    def _between(
        self,
        hooks: _Hooks,
        kept: States,
        given: Given,
        unit: tuple[int, str, Site],
        parts: Sequence[Any],
        reader: Any,
    ) -> None:
        """Replaces what the first site gave, once it was read, and reads what reaches the second before that is replaced."""
        index, name, first = unit
        rows = given.get(key(index, first.name, "out"))
        if rows is None:
            return
        begin = 0
        for part in parts:
            width = int(part.weight.shape[0]) if len(parts) > 1 else rows.shape[1]
            hooks.replace_output(part, self._tensor(rows[:, begin : begin + width], part.weight.dtype))
            begin += width
        hooks.input_first(reader, partial(_keep, kept, key(index, name, "out")))

    def _substitute(self, hooks: _Hooks, module: Any, rows: npt.NDArray[np.float32] | None) -> None:
        if rows is not None:
            hooks.replace_input(module, self._tensor(rows, self._model.dtype))

    def _tensor(self, rows: npt.NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(rows)).to(device=self._model.device, dtype=dtype)


class _Hooks:
    """Hooks of one forward. Order matters: a reader that is added before a replacement sees what was there."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def output(self, module: Any, keep: Callable[[Any], None]) -> None:
        """Reads what comes out, before any replacement."""

        def hook(_module: Any, _args: Any, out: Any) -> None:
            keep(out)

        self.handles.append(module.register_forward_hook(hook, prepend=True))

    def router(self, module: Any, keep: Callable[[Any], None]) -> None:
        """Reads logits before softmax, which some routers do not return."""

        def hook(module: Any, args: Any, _out: Any) -> None:
            import torch

            if getattr(module, "weight", None) is not None and args:
                keep(torch.nn.functional.linear(args[0].to(module.weight.dtype), module.weight))

        self.handles.append(module.register_forward_hook(hook))

    def replace_output(self, module: Any, value: torch.Tensor) -> None:
        """Sends something else on."""

        def hook(_module: Any, _args: Any, out: Any) -> Any:
            return value.view(out.shape)

        self.handles.append(module.register_forward_hook(hook))

    def input_first(self, module: Any, keep: Callable[[Any], None]) -> None:
        """Reads what goes in, before any replacement."""

        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            keep(args[0] if args else kwargs["hidden_states"])

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))

    def replace_input(self, module: Any, value: torch.Tensor) -> None:
        """Feeds something else."""

        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (value.view(args[0].shape), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": value.view(kwargs["hidden_states"].shape)}

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


@contextmanager
def _hooked() -> Iterator[_Hooks]:
    hooks = _Hooks()
    try:
        yield hooks
    finally:
        for handle in hooks.handles:
            handle.remove()


def _find(site: Site, modules: Mapping[str, Any]) -> list[Any] | None:
    """The modules of a site on the training side, or None where the layer does not have it."""
    for paths in site.train:
        if all(path in modules for path in paths):
            return [modules[path] for path in paths]
    return None


def _decoder(model: Any) -> tuple[Any, list[Any]]:
    import torch

    for _, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        layers = getattr(module, "layers", None)
        if isinstance(layers, torch.nn.ModuleList) and len(layers) and hasattr(layers[0], "self_attn"):
            return module, list(layers)
    raise CaptureError(
        f"{type(model).__name__} has no decoder layers of a known kind",
        hint="report this model's architecture",
    )


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _rows(out: Any) -> torch.Tensor:
    """What one sequence gave as [tokens, width], heads side by side, whatever shape the module works in."""
    rows: torch.Tensor = _first(out).detach()
    return (rows[0] if rows.dim() > 2 else rows).flatten(1)


def _keep(kept: States, name: str, out: Any) -> None:
    kept[name] = _rows(out).float().cpu().numpy()
