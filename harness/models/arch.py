"""Where the parts of a transformer are, found by the shapes of its modules and not by the name of the model.

A block's feed-forward part is the group of two or three matrices that lead from the hidden size ``d`` to one width
``f`` and back; its down-projection is the matrix ``f -> d``. No attention has that form: it has four matrices, or a
fused one whose width is not the width of its output projection.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.errors import ModelError, near

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Architecture", "is_matrix", "resolve_architecture", "stored_transposed"]

_PARTS = "embedding, blocks, mlp, attn, down, norm, head"


@dataclass(frozen=True)
class Architecture:
    """Module names; ``{}`` stands for the index of the block.

    Attributes:
        embedding: the token embedding.
        blocks: one transformer block.
        mlp: the module whose output is added to the residual stream; the down-projection where a block has none, or one
            that adds the residual stream itself (BLOOM, MPT).
        down: the down-projection, ``f -> d``.
        norm: the final norm, None where the model has none.
        head: the output embedding.
        layers: the number of blocks.
        width: ``d``, the size of the residual stream.
        inner: ``f``, the size of a key.
        attn: the attention module, None where a block has no single one.
    """

    embedding: str
    blocks: str
    mlp: str
    down: str
    norm: str | None
    head: str
    layers: int
    width: int
    inner: int
    attn: str | None = None

    def block(self, layer: int) -> str:
        """The name of one block.

        Raises:
            ModelError: the model has no such layer.
        """
        return self.blocks.format(self._checked(layer))

    def mlp_of(self, layer: int) -> str:
        """The name of one block's feed-forward module."""
        return self.mlp.format(self._checked(layer))

    def down_of(self, layer: int) -> str:
        """The name of one block's down-projection."""
        return self.down.format(self._checked(layer))

    def attn_of(self, layer: int) -> str:
        """The name of one block's attention module.

        Raises:
            ModelError: the model has no such layer, or no single attention module was found in its blocks.
        """
        if self.attn is None:
            raise ModelError(
                f"no single attention module in '{self.blocks}'; name it by hand, for example "
                f"--arch attn={self.blocks}.attn"
            )
        return self.attn.format(self._checked(layer))

    def _checked(self, layer: int) -> int:
        if not 0 <= layer < self.layers:
            raise ModelError(f"layer {layer}: the model has layers 0 to {self.layers - 1}; choose one of them")
        return layer


def is_matrix(module: nn.Module) -> bool:
    """Whether the module is a plain matrix product with a two-dimensional weight, quantised or not."""
    weight = getattr(module, "weight", None)
    known = isinstance(module, nn.Linear) or stored_transposed(module)
    return known and isinstance(weight, torch.Tensor) and weight.dim() == 2


def stored_transposed(module: nn.Module) -> bool:
    """Whether the module keeps its weight as ``[in, out]``, as GPT-2's ``Conv1D`` does."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def resolve_architecture(model: PreTrainedModel, names: Mapping[str, str] | None = None) -> Architecture:
    """Find the parts of a model, or take them from ``names``.

    Args:
        model: a causal language model.
        names: parts named by hand, from ``embedding, blocks, mlp, attn, down, norm, head``.

    Raises:
        ModelError: a part was not found, or a name given by hand is not a module.
    """
    by_hand = dict(names or {})
    _check_names(model, by_hand)
    embedding = by_hand.get("embedding") or _name_of(model, model.get_input_embeddings(), "embedding")
    width = _width(model.get_submodule(embedding), embedding)
    blocks, count = _blocks(model, by_hand.get("blocks"))
    down = by_hand.get("down") or _down(model, blocks, width)
    inner = _in_out(model.get_submodule(down.format(0)))[0]
    parent = down.rpartition(".")[0]
    return Architecture(
        embedding=embedding,
        blocks=blocks,
        mlp=by_hand.get("mlp")
        or (parent if parent != blocks and _alone(model.get_submodule(parent.format(0))) else down),
        down=down,
        norm=by_hand.get("norm") or _final_norm(model, blocks, width),
        head=by_hand.get("head") or _head(model),
        layers=count,
        width=width,
        inner=inner,
        attn=by_hand.get("attn") or _attention(model, blocks, down),
    )


def _check_names(model: nn.Module, by_hand: Mapping[str, str]) -> None:
    modules = {name for name, _ in model.named_modules()}
    for part, name in by_hand.items():
        if part not in {f.name for f in fields(Architecture)} - {"layers", "width", "inner"}:
            raise ModelError(f"architecture part '{part}' does not exist; the parts are {_PARTS}")
        if name.format(0) not in modules:
            raise ModelError(f"'{name}' is not a module of {type(model).__name__}{near(name, modules)}")
        if part in ("mlp", "attn", "down") and "{}" not in name:
            raise ModelError(f"'{name}' is of one layer; write {{}} in its place, for example transformer.h.{{}}.mlp")
        if part == "down" and not is_matrix(model.get_submodule(name.format(0))):
            raise ModelError(
                f"'{name}' is no matrix; name the down-projection, for example transformer.h.{{}}.mlp.c_proj"
            )


def _head(model: PreTrainedModel) -> str:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return _name_of(model, head, "head")


def _name_of(model: nn.Module, wanted: nn.Module | None, part: str) -> str:
    for name, module in model.named_modules():
        if wanted is not None and module is wanted:
            return str(name)
    raise _not_found(model, part, f"the module that transformers calls the {part}")


def _width(embedding: nn.Module, name: str) -> int:
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise ModelError(
            f"'{name}' has no weight [vocabulary, width]; name the token embedding with --arch embedding=NAME"
        )
    return int(weight.shape[1])


def _blocks(model: nn.Module, by_hand: str | None) -> tuple[str, int]:
    if by_hand is not None:
        stem = by_hand.rpartition(".{}")[0]
        listed = model.get_submodule(stem)
        if not by_hand.endswith(".{}") or not isinstance(listed, nn.ModuleList):
            raise ModelError(
                f"'{by_hand}' does not end in '.{{}}' after a list of modules; for example transformer.h.{{}}"
            )
        return by_hand, len(listed)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and _uniform(m)]
    if not lists:
        raise _not_found(model, "blocks", "a list of equal modules that hold matrices")
    # The blocks hold most of a model; a list inside a block (experts, heads) holds less.
    name, blocks = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return f"{name}.{{}}", len(blocks)


def _uniform(modules: nn.ModuleList) -> bool:
    return len({type(m) for m in modules}) == 1 and any(is_matrix(m) for m in modules[0].modules())


def _down(model: nn.Module, blocks: str, width: int) -> str:
    block = model.get_submodule(blocks.format(0))
    found = [
        (_in_out(block.get_submodule(".".join(p for p in (parent, name) if p)))[0], parent, name)
        for parent in _parents(block)
        if (name := _down_in(block.get_submodule(parent), width)) is not None
    ]
    if found:
        # A fused attention can look like a narrow feed-forward part; the real one is wider.
        _, parent, name = max(found, key=lambda candidate: candidate[0])
        return ".".join(p for p in (blocks, parent, name) if p)
    raise _not_found(model, "down", f"two or three matrices of one module that lead from {width} to one width and back")


def _parents(block: nn.Module) -> Iterator[str]:
    for name, module in block.named_modules():
        if any(is_matrix(child) for child in module.children()):
            yield name


def _down_in(parent: nn.Module, width: int) -> str | None:
    matrices = {name: _in_out(child) for name, child in parent.named_children() if is_matrix(child)}
    ups = [(i, o) for i, o in matrices.values() if i == width]
    downs = [name for name, (i, o) in matrices.items() if o == width and (i != width or len(matrices) == 2)]
    if not 2 <= len(matrices) <= 3 or len(downs) == 0 or not ups:
        return None
    name = downs[-1]
    inner = matrices[name][0]
    others = [shape for other, shape in matrices.items() if other != name]
    # One fused gate-and-up matrix is twice as wide as the down-projection is deep (Phi-3).
    fits = all(i == width and o in (inner, 2 * inner) for i, o in others)
    return name if fits and len({o for _, o in others}) == 1 else None


def _alone(module: nn.Module) -> bool:
    """Whether a module needs nothing but what it is applied to, as one does that adds the residual stream itself."""
    # Of the class: what places a model on several devices wraps the method of each module.
    _, *given = inspect.signature(type(module).forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in given) <= 1


def _attention(model: nn.Module, blocks: str, down: str) -> str | None:
    """The one child of a block that holds matrices and is neither a matrix nor the feed-forward part."""
    block = model.get_submodule(blocks.format(0))
    inside = down.removeprefix(f"{blocks}.").split(".")[0]
    found = [
        name
        for name, child in block.named_children()
        if name != inside and not is_matrix(child) and any(is_matrix(part) for part in child.modules())
    ]
    return f"{blocks}.{found[0]}" if len(found) == 1 else None


def _in_out(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        # The weight may be packed (4 bits), and then of another shape than the matrix.
        return module.in_features, module.out_features
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    return (int(rows), int(columns)) if stored_transposed(module) else (int(columns), int(rows))


def _final_norm(model: nn.Module, blocks: str, width: int) -> str | None:
    holder = blocks.rpartition(".{}")[0].rpartition(".")[0]
    found = None
    for name, child in model.get_submodule(holder).named_children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.shape == (width,):
            found = f"{holder}.{name}" if holder else name
    return found


def _not_found(model: nn.Module, part: str, looked_for: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: no {part} found (looked for {looked_for}); name the modules by hand, for example "
        "--arch blocks=transformer.h.{},down=transformer.h.{}.mlp.c_proj"
    )
