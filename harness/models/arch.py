"""Where the parts of a transformer are, found by the shapes of its modules and not by the name of the model.

A block's feed-forward part is the group of two or three matrices that lead from the hidden size ``d`` to one width
``f`` and back; its down-projection is the matrix ``f -> d``. No attention has that form: it has four matrices, or a
fused one whose width is not the width of its output projection. Every block is looked at. One that holds experts has no
down-projection that all tokens pass; a shared expert beside them is edited only where it is named by hand. Where the
experts' down-projections are one parameter, they are one matrix for editors that ask for it
(:mod:`harness.models.experts`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.errors import ModelError, near
from harness.models.experts import Experts, stacked_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Architecture", "Layer", "is_matrix", "resolve_architecture", "stored_transposed"]

_PARTS = "embedding, blocks, mlp, attn, down, norm, head"
_MOST = 1000  # no model has more blocks


@dataclass(frozen=True)
class Layer:
    """Where the parts of one block are; each is None where the block has no single one.

    Attributes:
        mlp: the module whose output is added to the residual stream.
        down: the down-projection.
        inner: the size of a key, 0 without a down-projection.
        attn: what mixes tokens: attention, or what stands in its place (Mamba, a convolution).
        why: why the block has no down-projection that can be edited.
        experts: the down-projections of its experts as one, None where it has no experts, or none that are stacked.
    """

    mlp: str | None
    down: str | None
    inner: int
    attn: str | None
    why: str = ""
    experts: Experts | None = None


@dataclass(frozen=True)
class Architecture:
    """Module names; ``{}`` stands for the index of the block.

    Blocks may differ (a dense one below mixtures of experts, attention in every fourth): ``mlp``, ``down``, ``inner``
    and ``attn`` are those of most blocks, and the methods know those of each.

    Attributes:
        embedding: the token embedding.
        blocks: one transformer block.
        mlp: the module whose output is added to the residual stream; the down-projection where a block has none, or one
            that adds the residual stream itself (BLOOM, MPT). None where no block has one.
        down: the down-projection, ``f -> d``; None where no block has one.
        norm: the final norm, None where the model has none.
        head: the output embedding.
        layers: the number of blocks.
        width: ``d``, the size of the residual stream.
        inner: ``f``, the size of a key.
        attn: the attention module, None where a block has no single one.
        each: the parts of every block.
        owner: what an error calls the model.
    """

    embedding: str
    blocks: str
    mlp: str | None
    down: str | None
    norm: str | None
    head: str
    layers: int
    width: int
    inner: int
    attn: str | None = None
    each: tuple[Layer, ...] = ()
    owner: str = field(default="the model", compare=False)

    @property
    def editable(self) -> tuple[int, ...]:
        """The layers that have a down-projection of their own."""
        return tuple(i for i, layer in enumerate(self.each) if layer.down is not None)

    @property
    def writable(self) -> tuple[int, ...]:
        """The layers that have a down-projection of their own, or experts whose down-projections are one."""
        return tuple(i for i, layer in enumerate(self.each) if layer.down is not None or layer.experts is not None)

    @property
    def stacked(self) -> dict[str, Experts]:
        """The experts of all layers that write through them, by the name of the module that holds them."""
        return {one.experts.module: one.experts for one in self.each if one.experts is not None}

    def block(self, layer: int) -> str:
        """The name of one block.

        Raises:
            ModelError: the model has no such layer.
        """
        return self.blocks.format(self._checked(layer))

    def mlp_of(self, layer: int) -> str:
        """The name of one block's feed-forward module.

        Raises:
            ModelError: the model has no such layer, or the layer no such module.
        """
        return self._named("mlp", layer, self.each[self._checked(layer)].mlp)

    def down_of(self, layer: int) -> str:
        """The name of one block's down-projection.

        Raises:
            ModelError: the model has no such layer, or the layer no down-projection; names those that have one.
        """
        return self._named("down", layer, self.each[self._checked(layer)].down)

    def writer_of(self, layer: int) -> str:
        """The name of the module that writes a layer's values: its down-projection, or its experts as one.

        Raises:
            ModelError: the model has no such layer, or the layer neither of them.
        """
        experts = self.each[self._checked(layer)].experts
        return self.down_of(layer) if experts is None else experts.module

    def key_size(self, layer: int) -> int:
        """The size of what enters :meth:`writer_of`; of experts that of the stacked key."""
        one = self.each[self._checked(layer)]
        return one.inner if one.experts is None else one.experts.width

    def attn_of(self, layer: int) -> str:
        """The name of one block's attention module.

        Raises:
            ModelError: the model has no such layer, or no single attention module was found in it.
        """
        found = self.each[self._checked(layer)].attn
        if found is None:
            raise ModelError(
                f"no single attention module in '{self.block(layer)}'; name it by hand, for example "
                f"--arch attn={self.blocks}.attn"
            )
        return found

    def _named(self, part: str, layer: int, name: str | None) -> str:
        if name is not None:
            return name
        why = self.each[layer].why
        if self.editable:
            raise ModelError(
                f"{self.owner}: layer {layer} has no down-projection to edit ({why}); layers that have one: "
                f"{', '.join(map(str, self.editable))}"
            )
        able = "writes all experts (rome, memit, ft_m) or one that " if self.writable else ""
        raise ModelError(
            f"{self.owner}: no {part} found ({why}); take an editor that {able}needs none (ike, rag, full), or name "
            f"the modules by hand, for example --arch blocks={self.blocks},down={self.blocks}.mlp.down_proj"
        )

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
    """Find the parts of every block of a model, or take them from ``names``.

    A block without a down-projection is no error before somebody asks for it (:meth:`Architecture.down_of`).

    Args:
        model: a causal language model.
        names: parts named by hand, from ``embedding, blocks, mlp, attn, down, norm, head``.

    Raises:
        ModelError: embedding, blocks or head were not found, or a name given by hand is not a module.
    """
    by_hand = dict(names or {})
    embedding = by_hand.get("embedding") or _name_of(model, model.get_input_embeddings(), "embedding")
    _check_names(model, by_hand)
    blocks, count = _blocks(model, embedding, by_hand.get("blocks"))
    width = _width(model, embedding, blocks=blocks, count=count)
    each = _unshared(model, [_layer(model, blocks, i, width=width, by_hand=by_hand) for i in range(count)])
    usual = _usual(each, blocks)
    return Architecture(
        embedding=embedding,
        blocks=blocks,
        mlp=by_hand.get("mlp") or usual["mlp"],
        down=by_hand.get("down") or usual["down"],
        norm=by_hand.get("norm") or _final_norm(model, blocks, width),
        head=by_hand.get("head") or _head(model),
        layers=count,
        width=width,
        inner=Counter(layer.inner for layer in each if layer.down).most_common(1)[0][0] if usual["down"] else 0,
        attn=by_hand.get("attn") or usual["attn"],
        each=each,
        owner=type(model).__name__,
    )


def _unshared(model: nn.Module, each: Sequence[Layer]) -> tuple[Layer, ...]:
    """The blocks, without the down-projections that several of them share: no value can be written in one block alone.

    Zamba and Zamba 2 have one transformer block for many places.
    """
    owners: dict[int, list[int]] = {}
    for i, layer in enumerate(each):
        if layer.down is not None:
            owners.setdefault(id(model.get_submodule(layer.down).weight), []).append(i)
    shared = {i: layers for layers in owners.values() if len(layers) > 1 for i in layers}
    return tuple(
        replace(layer, mlp=None, down=None, inner=0, why=_same(i, shared[i])) if i in shared else layer
        for i, layer in enumerate(each)
    )


def _same(layer: int, layers: Sequence[int]) -> str:
    others = ", ".join(str(i) for i in layers if i != layer)
    return f"its feed-forward part is that of layer{'s' if len(layers) > 2 else ''} {others}, too"


def _usual(each: Sequence[Layer], blocks: str) -> dict[str, str | None]:
    """The names that most blocks give their parts, ``{}`` in place of the index."""
    found: dict[str, str | None] = {}
    for part in ("mlp", "down", "attn"):
        names = [
            blocks + name.removeprefix(blocks.format(i))
            for i, layer in enumerate(each)
            if (name := getattr(layer, part)) is not None
        ]
        found[part] = Counter(names).most_common(1)[0][0] if names else None
    return found


def _layer(model: nn.Module, blocks: str, index: int, *, width: int, by_hand: Mapping[str, str]) -> Layer:
    """The parts of one block."""
    at = blocks.format(index)
    block = model.get_submodule(at)
    held = {name for name, _ in model.named_modules()}
    given = {part: name.format(index) for part, name in by_hand.items() if part in ("mlp", "down", "attn")}
    experts = _experts(block, width)
    down, why = _down(block, width, experts)
    if "down" in given:
        named = given["down"]
        down = named.removeprefix(f"{at}.") if named in held and is_matrix(model.get_submodule(named)) else None
        why = "" if down else f"it has no matrix '{named}'"
    elif down is None and experts is not None:
        why = f"a mixture of experts{_shared(block, width, blocks)}"
    inside = (down or experts or "").split(".")[0]
    mlp = _mlp(block, down) if down else inside if inside and _alone(block.get_submodule(inside)) else ""
    attn = _attention(block, inside)
    return Layer(
        mlp=given.get("mlp") or (f"{at}.{mlp}" if mlp else None),
        down=f"{at}.{down}" if down else None,
        inner=_in_out(block.get_submodule(down))[0] if down else 0,
        attn=given.get("attn") or (f"{at}.{attn}" if attn else None),
        why=why,
        experts=None if down or experts is None or "down" in given else _stacked(model, f"{at}.{experts}", width),
    )


def _mlp(block: nn.Module, down: str) -> str:
    """The feed-forward module around a down-projection, or the down-projection itself."""
    parent = down.rpartition(".")[0]
    return parent if parent and _alone(block.get_submodule(parent)) else down


def _check_names(model: nn.Module, by_hand: Mapping[str, str]) -> None:
    modules = {name for name, _ in model.named_modules()}
    for part, name in by_hand.items():
        if part not in {f.name for f in fields(Architecture)} - {"layers", "width", "inner", "each", "owner"}:
            raise ModelError(f"architecture part '{part}' does not exist; the parts are {_PARTS}")
        if not any(name.format(i) in modules for i in range(_MOST if "{}" in name else 1)):
            raise ModelError(f"'{name}' is not a module of {type(model).__name__}{near(name, modules)}")
        if part in ("mlp", "attn", "down") and "{}" not in name:
            raise ModelError(f"'{name}' is of one layer; write {{}} in its place, for example transformer.h.{{}}.mlp")
        known = [name.format(i) for i in range(_MOST) if name.format(i) in modules]
        if part == "down" and not any(is_matrix(model.get_submodule(one)) for one in known):
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


def _width(model: nn.Module, embedding: str, *, blocks: str, count: int) -> int:
    """The size of the residual stream: of the embedding, or of the blocks' matrices where these fit nothing so narrow.

    Raises:
        ModelError: the embedding has no matrix.
    """
    weight = getattr(model.get_submodule(embedding), "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise ModelError(
            f"'{embedding}' has no weight [vocabulary, width]; name the token embedding with --arch embedding=NAME"
        )
    width = int(weight.shape[1])
    listed = [model.get_submodule(blocks.format(i)) for i in range(count)]
    shapes = [_in_out(part) for block in listed for part in block.modules() if is_matrix(part)]
    if any(width in shape for shape in shapes) or not shapes:
        return width
    # opt-350m: embeddings of 512 numbers are projected to blocks of 1024.
    return Counter(size for shape in shapes for size in shape).most_common(1)[0][0]


def _blocks(model: nn.Module, embedding: str, by_hand: str | None) -> tuple[str, int]:
    if by_hand is not None:
        stem = by_hand.rpartition(".{}")[0]
        listed = model.get_submodule(stem)
        if not by_hand.endswith(".{}") or not isinstance(listed, nn.ModuleList):
            raise ModelError(
                f"'{by_hand}' does not end in '.{{}}' after a list of modules; for example transformer.h.{{}}"
            )
        return by_hand, len(listed)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and _holds_matrices(m)]
    # What stands beside the embedding is not of a vision tower.
    beside = [(name, m) for name, m in lists if _holder(name) == "" or f"{embedding}.".startswith(f"{_holder(name)}.")]
    if not lists:
        raise _not_found(model, "blocks", "a list of modules that hold matrices")
    # The blocks hold most of a model; a list inside a block (experts, heads) holds less.
    name, blocks = max(beside or lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return f"{name}.{{}}", len(blocks)


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _holds_matrices(modules: nn.ModuleList) -> bool:
    return any(is_matrix(m) for m in modules.modules())


def _down(block: nn.Module, width: int, experts: str | None) -> tuple[str | None, str]:
    """The down-projection of a block, or why it has none."""
    found = [] if experts is not None else _downs(block, width)
    if not found:
        return None, f"looked for two or three matrices of one module that lead from {width} to one width and back"
    # A fused attention can look like a narrow feed-forward part; the real one is wider.
    return max(found, key=lambda candidate: candidate[0])[1], ""


def _downs(block: nn.Module, width: int) -> list[tuple[int, str]]:
    """Size of a key and name of all that has the form of a down-projection."""
    names = [
        ".".join(p for p in (parent, name) if p)
        for parent in _parents(block)
        if (name := _down_in(block.get_submodule(parent), width)) is not None
    ]
    return [(_in_out(block.get_submodule(name))[0], name) for name in names]


def _experts(block: nn.Module, width: int) -> str | None:
    """Where a block keeps experts: a list of feed-forward parts, or their matrices stacked; None where it has none."""
    for child, part in block.named_children():
        for inside, module in part.named_modules():
            listed = isinstance(module, nn.ModuleList) and any(_downs(expert, width) for expert in module)
            # JetMoE has experts of attention, too.
            if listed or (_stacked_experts(module, width) and not _told_of_others(part)):
                return f"{child}.{inside}".rstrip(".")
    return None


def _stacked(model: nn.Module, part: str, width: int) -> Experts | None:
    """The experts inside a part of a block whose down-projections are one parameter; None where there is not one."""
    inside = [(f"{part}.{name}".rstrip("."), module) for name, module in model.get_submodule(part).named_modules()]
    found = [experts for name, module in inside if (experts := stacked_experts(name, module, width)) is not None]
    return found[0] if len(found) == 1 else None


def _stacked_experts(module: nn.Module, width: int) -> bool:
    """Whether a module holds the matrices of several feed-forward parts, stacked: to one width, or twice it, and back.

    Mamba's projections by head (Zamba) have three dimensions, too, and so has the kernel of a convolution.
    """
    sizes = [
        set(p.shape[1:]) - {width} or {width}
        for p in module.parameters()
        if p.dim() == 3 and len(p) > 1 and width in p.shape[1:]
    ]
    found = [min(inner) for inner in sizes]
    return any(found.count(f) + found.count(2 * f) >= 2 for f in found)


def _told_of_others(module: nn.Module) -> bool:
    """Whether a module is told of other tokens than those that it is applied to, as attention is."""
    given = inspect.signature(type(module).forward).parameters
    return any(word in name for name in given for word in ("mask", "position", "past", "cache"))


def _shared(block: nn.Module, width: int, blocks: str) -> str:
    """How the experts are named that every token passes, where there are some."""
    found = [name for _, name in _downs(block, width) if not any(part.isdigit() for part in name.split("."))]
    return f", of which the shared one is edited only by name, --arch down={blocks}.{found[0]}" if found else ""


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
    # The fused attention of DBRX has the same form where it has half as many heads for keys as for queries.
    fused = len(others) == 1 and others[0][1] == 2 * inner
    mixes = fused and _told_of_others(parent)
    return name if fits and not mixes and len({o for _, o in others}) == 1 else None


def _alone(module: nn.Module) -> bool:
    """Whether a module needs nothing but what it is applied to, as one does that adds the residual stream itself."""
    # Of the class: what places a model on several devices wraps the method of each module.
    _, *given = inspect.signature(type(module).forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in given) <= 1


def _attention(block: nn.Module, inside: str) -> str | None:
    """The one child of a block that holds matrices and is neither a matrix nor the feed-forward part."""
    found = [
        name
        for name, child in block.named_children()
        if name != inside and not is_matrix(child) and any(is_matrix(part) for part in child.modules())
    ]
    return found[0] if len(found) == 1 else None


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
