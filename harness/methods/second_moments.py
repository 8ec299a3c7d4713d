"""Second moments of keys and of gradients, all layers in one pass, kept in a cache whose key holds every input.

``C = sum k k^T / count``, uncentred, over all tokens of a text; ``k`` is the input of a layer's down-projection.  Of
gradients ``B = sum g g^T / count``, over all tokens that another follows; ``g`` is the gradient of the summed NLL of a
text at the output of the down-projection.
Source: Meng et al. 2022 (ROME), section 3.1 and appendix E; the text there is Wikipedia, 100,000 articles. Far less
text is enough where ``C`` has full rank: a few tokens for each dimension of a key (Gupta et al. 2025, arXiv
2506.04226).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float64
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from harness.errors import DataError, ModelError, NumericalError
from harness.io.cache import cache_folder, in_cache, share
from harness.io.files import json_sha256
from harness.io.hashes import tensor_sha256
from harness.io.locks import made_once
from harness.io.plain_text import on_hub, read_documents, require_answer, text_identity
from harness.io.progress import progress_console
from harness.io.schema import checked, parsed
from harness.io.tensor_file import save_whole
from harness.methods.decompositions import DecompositionKind, kept_decomposition
from harness.methods.descent import capture_gradients
from harness.models.activations import at_least_float32, capture_activations, fused_gelu
from harness.models.lm import LM
from harness.models.memory import free_bytes, gibibytes
from harness.models.tokens import tokenizer_text
from harness.patches.delta import double

__all__ = [
    "CachedMoment",
    "Manifest",
    "Moment",
    "MomentOf",
    "accumulate_gradient_moments",
    "accumulate_moments",
    "cached_moments",
    "first_documents",
    "head_sha256",
    "keep_stand_ins",
    "missing_moments",
    "moment_bytes",
    "moments",
    "moments_folder",
    "read_cached_header",
    "require_finite_moment",
    "require_moment_text",
    "require_room",
    "verify_cached",
]

log = logging.getLogger(__name__)

FORMAT = 1
_WINDOW = 256  # documents that are sorted by length before they are batched
_LONGEST = 4096  # tokens that are read of a document, where the model takes more: keys of all layers stand in memory
_BACKWARD = 512  # tokens that are read of a document where gradients are wanted, whose logits stand in memory
_DOUBLED = 8192
"""The widest keys whose moments are kept in float64, for the small eigenvalues; beyond, each layer has a gigabyte."""

_OF = ": "  # between a module and what a moment is of, where that is not the keys
_STRIPE = 256  # columns of a moment that are computed at a time

MomentOf = Literal["keys", "followed keys", "gradients"]
"""What a second moment is of: what enters a down-projection, at all tokens or at those that another follows, or the
gradient of a text's NLL at what leaves it, which only the latter have."""


@dataclass(frozen=True, eq=False)
class Moment:
    """The uncentred second moment of one layer's keys.

    Attributes:
        matrix: ``[f, f]``, symmetric.
        count: the number of tokens.
        key: the cache key, empty where it was not cached.
        name: what an error calls it.
        sha256: of the matrix, empty where it was not cached; its decompositions are kept under it.

    The state of a run under way names one that lies in the cache instead of holding it, see
    :class:`harness.io.plain_objects.KeptElsewhere`: at a width of 14,336 a matrix has 0.8 GB.
    """

    matrix: Float[Tensor, "f f"]
    count: int
    key: str = ""
    name: str = "a layer"
    sha256: str = ""

    def kept_as(self) -> dict[str, str] | None:
        """The file, the matrix's sha256 and its device; None where the cache does not hold it."""
        if not self.sha256 or not in_cache(_file_of(self.key)):
            return None
        return {"key": self.key, "sha256": self.sha256, "device": str(self.matrix.device)}

    @classmethod
    def read_kept(cls, name: Mapping[str, str]) -> Moment:
        """The moment of such a name.

        Raises:
            DataError: its file is gone or damaged, or holds another matrix.
        """
        path = _file_of(name["key"])
        in_cache(path)
        moment = _read_moment(path, read_cached_header(path), torch.device(name["device"]))
        if moment.sha256 != name["sha256"]:
            raise DataError(f"{path}: holds another second moment than the one that was used; repeat the run")
        return moment

    @cached_property
    def factor(self) -> Float64[Tensor, "f f"]:
        """The lower Cholesky factor of ``C`` in float64, ``[f, f]``; computed once, and kept on disk.

        Raises:
            NumericalError: ``C`` is not finite, or too little text makes it singular.
        """
        lower = self._decomposed("factor", lambda: {"lower": self._cholesky()})["lower"]
        # Column by column, as LAPACK takes it: every solve would turn a copy of it round.
        return lower.mT.contiguous().mT

    def _cholesky(self) -> Float64[Tensor, "f f"]:
        require_finite_moment(self, self.name)
        size = self.matrix.shape[0]
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(double(self.matrix))
        if self.count < size or bool(failed):
            raise NumericalError(
                f"the second moment of {self.name} has no inverse: {self.count} tokens were read, at least {size} are "
                f"needed and more where text repeats itself; raise --set cov_tokens={max(10 * size, 2 * self.count)} "
                "or give more text with --text FILE"
            )
        return lower

    @cached_property
    def spectrum(self) -> tuple[Float64[Tensor, "f"], Float64[Tensor, "f f"]]:
        """The eigenvalues of ``C``, ascending, ``[f]``, and its eigenvectors ``[f, f]``, in float64.

        Computed once, and kept on disk.
        """
        found = self._decomposed("spectrum", self._eigen)
        return found["values"], found["vectors"]

    def _eigen(self) -> dict[str, Tensor]:
        require_finite_moment(self, self.name)
        values, vectors = torch.linalg.eigh(double(self.matrix))
        return {"values": values, "vectors": vectors}

    def _decomposed(self, kind: DecompositionKind, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        size, device = self.matrix.shape[0], self.matrix.device
        return kept_decomposition(kind, compute, moment=self.sha256, size=size, device=device)

    def solve(self, right: Float[Tensor, "f n"]) -> Float64[Tensor, "f n"]:
        """``C^-1 right`` in float64, ``[f, n]``."""
        return torch.cholesky_solve(double(right).to(self.factor.device), self.factor)


class _ManifestFile(TypedDict):
    """A :class:`Manifest`, as its file holds it."""

    model: str
    tokenizer: str
    module: str
    text: str
    tokens: int
    context: int
    dtype: str
    format: int


@dataclass(frozen=True)
class Manifest:
    """Every input of one moment; its sha256 is the cache key.

    Attributes:
        model: the fingerprint of the weights.
        tokenizer: the sha256 of the tokenizer.
        module: the down-projection; of gradients, with a word that says so.
        text: the sha256 of the text files, or the name and commit of a Hub data set.
        tokens: how many tokens were asked for.
        context: where documents are cut, in tokens.
        dtype: the precision of the matrix.
        format: the version of this computation.
    """

    model: str
    tokenizer: str
    module: str
    text: str
    tokens: int
    context: int
    dtype: str
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The name of the cache file."""
        return json_sha256(asdict(self))

    @property
    def text_key(self) -> str:
        """What is the same for all layers of a model that read the same text."""
        return json_sha256({**asdict(self), "module": ""})


@dataclass(frozen=True)
class CachedMoment:
    """A file of the cache: where it is, what it was made from, how many tokens it holds."""

    path: Path
    manifest: Manifest
    count: int


def moments(
    lm: LM,
    layers: Sequence[int],
    *,
    tokens: int = 100_000,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
    of: MomentOf = "keys",
) -> dict[int, Moment]:
    """The second moments of some layers, from the cache or from ``lm.text`` in one pass.

    Args:
        lm: the model; the moments are those of its weights as they are now.
        layers: the layers.
        tokens: how many tokens to read.
        progress: told how many tokens are read, and how many are wanted; by default a bar on a terminal.
        folder: the cache, by default :func:`moments_folder`.
        of: what they are of.

    Raises:
        DataError: the text cannot be read, or a cache file is damaged.
        NumericalError: an activation is not finite; names the layer.
    """
    if tokens < 1:
        raise DataError(
            f"{tokens} tokens of text for second moments: give at least 1, for example --set cov_tokens=100000"
        )
    folder = folder or moments_folder()
    wanted = _manifests(lm, sorted(set(layers)), tokens, of)
    found = _kept_moments(lm, wanted, folder)
    if len(found) < len(wanted):
        # One lock for all layers: several processes that need some of them read the text once.
        with made_once(folder / f"{next(iter(wanted.values())).text_key}.safetensors") as waited:
            found = _kept_moments(lm, wanted, folder) if waited else found
            missing = [layer for layer in wanted if layer not in found]
            if missing:
                require_room(lm, missing)
                made = {layer: wanted[layer] for layer in missing}
                found |= _made_now(lm, made, folder, tokens=tokens, progress=progress, of=of)
    return {layer: found[layer] for layer in wanted}


def _made_now(
    lm: LM,
    wanted: Mapping[int, Manifest],
    folder: Path,
    *,
    tokens: int,
    progress: Callable[[int, int], None] | None,
    of: MomentOf,
) -> dict[int, Moment]:
    """The moments of a pass over the text, which are kept."""
    read, layers = read_documents(lm.text), list(wanted)
    if of == "gradients":
        made = accumulate_gradient_moments(lm, layers, read, tokens=tokens, progress=progress)
    else:
        followed = of == "followed keys"
        made = accumulate_moments(lm, layers, read, tokens=tokens, progress=progress, followed=followed)
    for moment in made.values():
        require_finite_moment(moment, moment.name)
    return {layer: _write_moment(folder, wanted[layer], moment) for layer, moment in made.items()}


def _kept_moments(lm: LM, wanted: Mapping[int, Manifest], folder: Path) -> dict[int, Moment]:
    """The moments that are in the cache, by layer."""
    found = {layer: _from_cache(folder / f"{m.key}.safetensors", m, lm) for layer, m in wanted.items()}
    return {layer: moment for layer, moment in found.items() if moment is not None}


def missing_moments(lm: LM, layers: Sequence[int], *, tokens: int) -> list[int]:
    """The layers whose second moments are not in the cache.

    Args:
        lm: the model.
        layers: the layers.
        tokens: how many tokens of text.
    """
    if not layers:
        return []
    wanted = _manifests(lm, sorted(set(layers)), tokens)
    return [layer for layer, one in wanted.items() if not in_cache(_file_of(one.key))]


def require_moment_text(lm: LM, layers: Sequence[int], *, tokens: int) -> None:
    """See that text can be read for the second moments that are still to be made; of files that was seen on loading.

    Args:
        lm: the model.
        layers: the layers whose second moments are needed.
        tokens: how many tokens of text.

    Raises:
        DataError: the Hub has to be asked for it, and does not answer.
    """
    if on_hub(lm.text) and missing_moments(lm, layers, tokens=tokens):
        require_answer(lm.text)


def require_room(lm: LM, layers: Sequence[int]) -> None:
    """See that each device has room for the second moments of the layers that it runs, and for one more to factor.

    Args:
        lm: the model.
        layers: the layers.

    Raises:
        ModelError: one has not; says how much is needed, and where.
    """
    for device, those in _by_device(lm, layers).items():
        free = free_bytes(device)
        sizes = [lm.arch.key_size(layer) for layer in those]
        needed = 8 * (sum(size**2 for size in sizes) + max(sizes) ** 2)
        if free is not None and needed > free:
            where = f"{'layer' if len(those) == 1 else 'layers'} {', '.join(map(str, those))}"
            stacked = any(lm.experts(lm.down(layer)) is not None for layer in those)
            keys = f" (the keys of all experts stacked are {max(sizes):,} numbers)" if stacked else ""
            cure = (
                "take rome with --set covariance=false" if stacked else "leave it less of the weights with --max-memory"
            )
            raise ModelError(
                f"{lm.name}: the second moments of {where}{keys} need {gibibytes(needed)} on {device}, where "
                f"{gibibytes(free)} are free; {cure}, or edit fewer layers"
            )


def _by_device(lm: LM, layers: Sequence[int]) -> dict[torch.device, list[int]]:
    found: dict[torch.device, list[int]] = {}
    for layer in sorted(set(layers)):
        found.setdefault(lm.device_at(lm.arch.writer_of(layer)), []).append(layer)
    return found


def first_documents(lm: LM, tokens: int) -> Iterator[str]:
    """The documents of the model's plain text, until they have so many tokens.

    Args:
        lm: the model.
        tokens: how many.
    """
    left = tokens
    for text in read_documents(lm.text):
        if left <= 0:
            return
        left -= len(lm.encode(text)[: _longest(lm)]) if text else 0
        yield text


def keep_stand_ins(lm: LM, found: Mapping[int, Moment], *, tokens: int) -> None:
    """Put moments of too little text, which are made invertible, where those of all of it are looked for.

    They tell how long the work with moments takes; the cache is to be one that is thrown away.

    Args:
        lm: the model.
        found: the moments by layer.
        tokens: over how many tokens they are said to be.
    """
    for layer, manifest in _manifests(lm, sorted(found), tokens).items():
        matrix = found[layer].matrix
        ridge = 1e-3 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        _write_moment(moments_folder(), manifest, replace(found[layer], matrix=matrix + ridge, count=tokens))


def moment_bytes(lm: LM) -> int:
    """The bytes of one number of a second moment in its file."""
    return 8 if lm.arch.inner <= _DOUBLED else 4


def accumulate_moments(
    lm: LM,
    layers: Sequence[int],
    texts: Iterable[str],
    *,
    tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    budget: int = 4096,
    followed: bool = False,
) -> dict[int, Moment]:
    """The second moments over a text, in float64, all layers in one pass that stops after the last of them.

    Args:
        lm: the model.
        layers: the layers.
        texts: documents; each is cut at the model's context, or at 4,096 tokens where it takes more.
        tokens: where to stop; None reads everything.
        progress: told how many tokens are read, and how many are wanted.
        budget: tokens of one forward pass, padding included.
        followed: whether only tokens that another follows have a part, of texts that are cut as for gradients.
    """
    names = {layer: lm.arch.writer_of(layer) for layer in layers}
    sums: dict[int, Tensor] = {}
    count = read = 0
    longest = _longest(lm, "followed keys" if followed else "keys")
    with _bar(progress, lm.name, tokens) as tell, fused_gelu(lm.model):
        for documents in _batches(lm, texts, tokens=tokens, budget=max(budget, longest), longest=longest):
            read += sum(len(row) for row in documents)
            rows = [row[:-1] for row in documents if len(row) > 1] if followed else documents
            if not rows:
                continue
            batch = lm.batch(rows)
            seen = capture_activations(lm, batch, inputs=names.values())
            for layer, name in names.items():
                keys = seen.inputs[name][batch.mask.bool().to(seen.inputs[name].device)]
                keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
                if layer not in sums:
                    sums[layer] = double(keys.new_zeros(keys.shape[1], keys.shape[1]))
                _add_upper(sums[layer], keys)
            count += sum(len(row) for row in rows)
            tell(read, tokens or read)
    if not count:
        raise DataError(f"'{lm.text}' holds no text; give plain text for second moments with --text FILE")
    return {layer: Moment(_mirrored(total) / count, count, name=f"layer {layer}") for layer, total in sums.items()}


def accumulate_gradient_moments(
    lm: LM,
    layers: Sequence[int],
    texts: Iterable[str],
    *,
    tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    budget: int = 1024,
) -> dict[int, Moment]:
    """The second moments of gradients over a text, in float64, all layers in one pass.

    Args:
        lm: the model.
        layers: the layers.
        texts: documents; each is cut at the model's context, or at 512 tokens where it takes more.
        tokens: where to stop; None reads everything.
        progress: told how many tokens are read, and how many are wanted.
        budget: tokens of one forward pass, padding included.
    """
    names = {layer: lm.arch.down_of(layer) for layer in layers}
    sums: dict[int, Tensor] = {}
    count = read = 0
    longest = _longest(lm, "gradients")
    with _bar(progress, lm.name, tokens) as tell:
        for rows in _batches(lm, texts, tokens=tokens, budget=max(budget, longest), longest=longest):
            for layer, slopes in _text_gradients(lm, rows, names).items():
                if layer not in sums:
                    sums[layer] = double(slopes.new_zeros(slopes.shape[1], slopes.shape[1]))
                _add_upper(sums[layer], slopes)
            count += sum(len(row) - 1 for row in rows)
            read += sum(len(row) for row in rows)
            tell(read, tokens or read)
    if not count:
        raise DataError(f"'{lm.text}' holds no text of two tokens; give plain text for second moments with --text FILE")
    return {layer: Moment(_mirrored(total) / count, count, name=f"layer {layer}") for layer, total in sums.items()}


def _text_gradients(lm: LM, rows: Sequence[Sequence[int]], names: Mapping[int, str]) -> dict[int, Float[Tensor, "n d"]]:
    """By layer the gradient of the summed NLL of some texts, at every token that another follows, ``[n, d]``."""
    batch = lm.batch(rows)
    with torch.enable_grad(), capture_gradients(lm, list(names.values())) as seen:
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        followed = batch.mask[:, 1:].bool()
        log_p = at_least_float32(logits[:, :-1][followed]).log_softmax(-1)
        loss = -log_p.gather(1, batch.ids[:, 1:][followed][:, None]).sum()
        slopes = torch.autograd.grad(loss, [seen[name][1] for name in names.values()])

    def at(slope: Tensor) -> Tensor:
        # OPT flattens rows and columns inside its blocks.
        whole = slope.reshape(*batch.ids.shape, slope.shape[-1])
        return at_least_float32(whole[:, :-1][followed.to(slope.device)])

    return {layer: at(slope) for layer, slope in zip(names, slopes, strict=True)}


def _add_upper(total: Float64[Tensor, "f f"], keys: Float[Tensor, "n f"]) -> None:
    """Add the stripes of ``K K^T`` from the top to the diagonal, nearly half of the products, to their sum.

    Products of one batch are in working precision, their sum in float64: errors do not grow with the text.

    Args:
        total: ``[f, f]``, float64, changed.
        keys: ``K^T [n, f]``.
    """
    for begin in range(0, keys.shape[1], _STRIPE):
        stripe = keys[:, begin : begin + _STRIPE]
        total[: begin + _STRIPE, begin : begin + _STRIPE] += double(keys[:, : begin + _STRIPE].T @ stripe)


def _mirrored(total: Float64[Tensor, "f f"]) -> Float64[Tensor, "f f"]:
    """The symmetric matrix ``[f, f]`` of which the stripes from the top to the diagonal are given; they are kept."""
    for begin in range(_STRIPE, len(total), _STRIPE):
        total[begin : begin + _STRIPE, :begin] = total[:begin, begin : begin + _STRIPE].T
    return total


def _batches(
    lm: LM, texts: Iterable[str], *, tokens: int | None, budget: int, longest: int | None = None
) -> Iterator[list[list[int]]]:
    """Tokenised documents of similar length, at most ``budget`` tokens with padding."""
    left, longest = tokens, longest or _longest(lm)
    stream = iter(texts)
    while window := list(islice(stream, _WINDOW)):
        rows = []
        for text in window:
            row = lm.encode(text)[:longest] if text else []
            row = row if left is None else row[:left]
            if row:
                rows.append(row)
            left = left if left is None else left - len(row)
        batch: list[list[int]] = []
        for row in sorted(rows, key=len):
            if batch and len(row) * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch
        if left is not None and left <= 0:
            return


@contextmanager
def _bar(
    progress: Callable[[int, int], None] | None, name: str, total: int | None
) -> Iterator[Callable[[int, int], None]]:
    """A callback, or a bar on the terminal where none was given."""
    console = progress_console()
    if progress is not None or not console.is_terminal:
        yield progress or (lambda _done, _total: None)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"second moments of {name} (tokens)", total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def require_finite_moment(moment: Moment, name: str) -> None:
    """Look for a NaN or an infinity.

    Raises:
        NumericalError: there is one; names the layer.
    """
    if not bool(torch.isfinite(moment.matrix).all()):
        raise NumericalError(
            f"the second moment of {name} holds a NaN or an infinity; load the model in float32 or bfloat16 "
            "and make it again"
        )


def _manifests(lm: LM, layers: Sequence[int], tokens: int, of: MomentOf = "keys") -> dict[int, Manifest]:
    tokenizer = hashlib.sha256(tokenizer_text(lm.tokenizer).encode()).hexdigest()
    model, text = lm.fingerprint(), text_identity(lm.text)
    kinds = {layer: "float64" if lm.arch.key_size(layer) <= _DOUBLED else "float32" for layer in layers}
    longest, what = _longest(lm, of), "" if of == "keys" else f"{_OF}{of}"
    return {
        layer: Manifest(model, tokenizer, lm.arch.writer_of(layer) + what, text, tokens, longest, kind)
        for layer, kind in kinds.items()
    }


def _longest(lm: LM, of: MomentOf = "keys") -> int:
    """Where documents are cut, in tokens."""
    return min(lm.context, _LONGEST if of == "keys" else _BACKWARD)


def _device_of(lm: LM, manifest: Manifest) -> torch.device:
    """Where the module of a moment runs."""
    return lm.device_at(manifest.module.partition(_OF)[0])


def moments_folder() -> Path:
    """Where moments are kept."""
    return cache_folder() / "moments"


def _file_of(key: str) -> Path:
    """The file of a moment in the cache; a key is the sha256 of a manifest, and never a path to elsewhere."""
    if not key.isalnum():
        raise DataError(f"{key!r} is no key of a second moment; repeat the run")
    return moments_folder() / f"{key}.safetensors"


def cached_moments(folder: Path | None = None) -> list[CachedMoment]:
    """The files of the cache.

    Raises:
        DataError: one of them is damaged.
    """
    return [read_cached_header(path) for path in sorted((folder or moments_folder()).glob("*.safetensors"))]


def verify_cached(path: Path, lm: LM) -> Moment:
    """Read one file of the cache for a model: whole, finite, as it was written, and of this model.

    Raises:
        DataError: the file is damaged, or of another model.
        NumericalError: it holds a NaN; names the module.
    """
    header = read_cached_header(path)
    if header.manifest.model != lm.fingerprint():
        raise DataError(
            f"{path}: made from the model {header.manifest.model[:12]}, but {lm.name} is {lm.fingerprint()[:12]}; "
            "make it for this model with `harness cov make`"
        )
    return _read_moment(path, header, _device_of(lm, header.manifest))


def _from_cache(path: Path, manifest: Manifest, lm: LM) -> Moment | None:
    """A cached moment; None where there is none, or none that can be used, and a line says why."""
    if not in_cache(path):
        return None
    try:
        header = read_cached_header(path)
        if header.manifest != manifest:
            raise DataError(f"{path}: holds the second moment of something else; delete the file, it is made again")
        return _read_moment(path, header, _device_of(lm, manifest))
    except (DataError, NumericalError) as error:
        log.warning("%s; it is made again", str(error).partition("; ")[0])
        return None


def read_cached_header(path: Path) -> CachedMoment:
    """What the head of a cached file says, its tensors unread."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
        # Files of earlier versions have a checksum of the matrix alone.
        if said.get("head", head_sha256(said)) != head_sha256(said):
            raise ValueError("its head is not what was written")
        manifest = parsed(said["manifest"])
        checked(_ManifestFile, manifest)
        return CachedMoment(path, Manifest(**manifest), int(said["count"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a readable file of second moments; delete the file, it is made again") from error


def head_sha256(said: Mapping[str, str]) -> str:
    """The checksum of what a file says of its matrix."""
    return hashlib.sha256("\n".join(said[key] for key in ("manifest", "count", "sha256")).encode()).hexdigest()


def _read_moment(path: Path, header: CachedMoment, device: torch.device) -> Moment:
    try:
        with safe_open(path, "pt") as file:
            # A copy, as in tensor_file: products with what begins at any byte of a file round otherwise.
            matrix, written = file.get_tensor("moment").clone(), (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable file of second moments; delete the file, it is made again") from error
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
        raise DataError(f"{path}: holds no square matrix of numbers; delete the file, it is made again")
    moment = Moment(matrix, header.count, header.manifest.key, header.manifest.module)
    require_finite_moment(moment, header.manifest.module)
    if tensor_sha256(matrix) != written:
        raise DataError(f"{path}: the matrix is not what was written; delete the file, it is made again")
    # Apple's GPUs have no float64, and what is solved with it is solved on the processor.
    placed = matrix if device.type == "mps" else matrix.to(device)
    return replace(moment, matrix=placed, sha256=written)


def _write_moment(folder: Path, manifest: Manifest, moment: Moment) -> Moment:
    """Write a moment under its key, in one step, and return it as it will be read."""
    matrix = moment.matrix.to(getattr(torch, manifest.dtype))
    plain = matrix.cpu().contiguous()
    metadata = {"manifest": json.dumps(asdict(manifest)), "count": str(moment.count), "sha256": tensor_sha256(plain)}
    metadata["head"] = head_sha256(metadata)
    target = folder / f"{manifest.key}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_whole(target, {"moment": plain}, metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder}: second moments cannot be written ({reason}); set HARNESS_CACHE to a folder of yours"
        ) from error
    share(target)
    return Moment(matrix, moment.count, manifest.key, manifest.module, metadata["sha256"])
