"""The Backpack language model: every token has a few sense vectors, and a Transformer only decides how to weigh them.

Source: Hewitt, Thickstun, Manning, Liang 2023, "Backpack Language Models", arXiv 2305.16765, sections 2 and 3, and the
shapes of the published checkpoints (stanfordnlp/backpack-gpt2), whose names the modules here carry, so that those
weights load as they are.  With ``C(v) [k, d]`` the senses of token ``v`` (its ``k`` senses, ``num_senses``) and
``alpha [k, t, s]`` the weights,

    o_t = sum over s, l of alpha[l, t, s] C(x_s)[l],    logits_t = E o_t

The contextualisation is a GPT-2 (:class:`transformers.GPT2Model`) that touches the output through ``alpha`` alone.
What a cache keeps of a token beside the blocks' keys and values are the key of ``alpha`` and the token's senses: one
layer more, of ``k`` heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, GPT2Config, GPT2Model
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from harness.errors import ModelError

__all__ = [
    "BackpackConfig",
    "BackpackForCausalLM",
    "BackpackModel",
    "BackpackOutput",
    "SenseNetwork",
    "WeightNetwork",
    "register",
]


class BackpackConfig(GPT2Config):  # type: ignore[no-untyped-call]
    """A GPT-2 configuration with senses; the defaults are the published model's.

    Attributes:
        num_senses: ``k``, the senses of a token; it divides the width.
        sense_intermediate_scale: the inner width of the sense network's last map, in widths.
    """

    model_type = "backpack"

    vocab_size: int = 50264
    n_positions: int = 512
    num_senses: int = 16
    sense_intermediate_scale: int = 4
    scale_attn_by_inverse_layer_idx: bool = True


@dataclass
class BackpackOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: the mean NLL of the labels, if there were any.
        logits: ``[batch, columns, vocabulary]``; None of :class:`BackpackModel`.
        hidden: ``o [batch, new, d]``.
        past_key_values: the cache.
        contextualization: ``alpha [batch, k, new, total]``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None
    past_key_values: Cache | None = None
    contextualization: Tensor | None = None


class _Projection(Conv1D):
    """The second map of a feed-forward part; it starts smaller, by the number of layers."""


class _FeedForward(nn.Module):
    """``W2 gelu(W1 x + b1) + b2`` from ``d`` over ``inner`` to ``out`` numbers."""

    def __init__(self, inner: int, out: int, config: BackpackConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(inner, config.hidden_size)  # type: ignore[no-untyped-call]
        self.c_proj = _Projection(out, inner)  # type: ignore[no-untyped-call]
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., d]`` to ``[..., out]``."""
        result: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(hidden))))
        return result


class _NoMixBlock(nn.Module):
    """A Transformer block whose mixer is the identity."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = _FeedForward(4 * config.hidden_size, config.hidden_size, config)
        self.resid_dropout1 = nn.Dropout(config.resid_pdrop)
        self.resid_dropout2 = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """``r1 = x + e``, ``r2 = MLP(LN r1) + r1``, and its norm, all ``[..., d]``."""
        residual = self.resid_dropout1(hidden) + residual
        residual = self.resid_dropout2(self.mlp(self.ln_1(residual))) + residual
        result: Tensor = self.ln_2(residual)
        return result


class SenseNetwork(nn.Module):
    """``C``: from a token's embedding alone to its senses."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_senses = config.num_senses
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.block = _NoMixBlock(config)
        self.ln = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.final_mlp = _FeedForward(config.sense_intermediate_scale * width, config.num_senses * width, config)

    def forward(self, embeds: Tensor) -> Tensor:
        """Embeddings ``[batch, columns, d]`` to senses ``[batch, columns, k, d]``."""
        residual = self.dropout(embeds)
        senses: Tensor = self.final_mlp(self.block(self.ln(residual), residual))
        return senses.reshape(*embeds.shape[:-1], self.num_senses, -1)


class WeightNetwork(nn.Module):
    """From hidden states to the queries and keys of ``alpha``, one head of ``d / k`` numbers for each sense."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self.num_senses = config.num_senses
        self.c_attn = nn.Linear(config.hidden_size, 2 * config.hidden_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``h [batch, new, d]`` to queries and keys, each ``[batch, k, new, d / k]``."""
        both = self.c_attn(hidden).unflatten(-1, (2, self.num_senses, -1)).permute(2, 0, 3, 1, 4)
        return both[0], both[1]


class _Pretrained(GPT2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Weights as GPT-2 starts them; the last map of the sense network counts as a residual one."""

    config: BackpackConfig
    config_class = BackpackConfig
    base_model_prefix = "backpack"
    supports_gradient_checkpointing = False
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"attn\.(masked_)?bias$",
        r"^backpack\.(word|position)_embeddings\.weight$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, _Projection):
            std = self.config.initializer_range / (2 * self.config.n_layer) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)


class BackpackModel(_Pretrained):
    """Everything but the output layer."""

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)
        if config.hidden_size % config.num_senses:
            raise ModelError(
                f"a Backpack of width {config.hidden_size} cannot have {config.num_senses} senses; "
                "choose a number that divides the width"
            )
        self.gpt2_model = GPT2Model(config)  # type: ignore[no-untyped-call]
        self.sense_network = SenseNetwork(config)
        self.sense_weight_net = WeightNetwork(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """``E``."""
        return self.gpt2_model.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another ``E``."""
        self.gpt2_model.set_input_embeddings(value)  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_unused: Any,
    ) -> BackpackOutput:
        """``o`` and ``alpha``.

        Args:
            input_ids: the new tokens, ``[batch, new]``.
            attention_mask: 1 where a token is real, ``[batch, total]``, or what is added to scores,
                ``[batch, 1, new, total]``.
            position_ids: ``[batch, new]``; by default counted from the cache's length on.
            past_key_values: what earlier passes kept.
            inputs_embeds: embeddings in place of tokens.
            use_cache: whether to keep.
        """
        embeds = self.gpt2_model.wte(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = DynamicCache() if past_key_values is None and use_cache else past_key_values
        past = int(cache.get_seq_length()) if cache is not None else 0
        hidden = self.gpt2_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        senses = self.sense_network(embeds).transpose(1, 2)
        queries, keys = self.sense_weight_net(hidden)
        if cache is not None:
            keys, senses = self._kept(cache, keys, senses, past)
        alpha = _alpha(queries, keys, attention_mask).to(senses.dtype)
        return BackpackOutput(hidden=(alpha @ senses).sum(1), past_key_values=cache, contextualization=alpha)

    def _kept(self, cache: Cache, keys: Tensor, senses: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Keys and senses of all tokens, those of the cache in front."""
        layer = self.config.n_layer
        if len(cache.layers) == layer:
            # generate() makes as many layers as the configuration names blocks.
            cache.layers.append(DynamicLayer())  # type: ignore[no-untyped-call]
        both: tuple[Tensor, Tensor] = cache.update(keys, senses, layer)
        if both[0].shape[-2] != past + keys.shape[-2]:
            raise ModelError("the cache holds no senses of its tokens; make it with a pass of this Backpack")
        return both


def _alpha(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """``alpha [batch, k, new, total]``: for each sense a distribution over the positions up to each new one."""
    products = queries @ keys.transpose(2, 3)
    scores = products.to(torch.promote_types(products.dtype, torch.float32)) * queries.shape[-1] ** -0.5
    new, total = scores.shape[2:]
    if mask is not None and mask.dim() == 4:
        return (scores + mask if mask.is_floating_point() else _hidden(scores, ~mask)).softmax(-1)
    ahead = torch.ones(new, total, dtype=torch.bool, device=scores.device).triu(total - new + 1)
    if mask is not None:
        ahead = ahead | (mask[:, None, None, :] == 0)
    return _hidden(scores, ahead).softmax(-1)


def _hidden(scores: Tensor, where: Tensor) -> Tensor:
    # Not minus infinity: a row of padding sees nothing, and 0 / 0 would spread.
    return scores.masked_fill(where, torch.finfo(scores.dtype).min)


class BackpackForCausalLM(_Pretrained, GenerationMixin):
    """A Backpack with its output layer, which is ``E`` again."""

    _tied_weights_keys = {"lm_head.weight": "backpack.gpt2_model.wte.weight"}  # noqa: RUF012

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.backpack = BackpackModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def cache_layers(self) -> int:
        """The layers of a cache: one for each block, and one for the senses."""
        return int(self.config.n_layer) + 1

    def get_input_embeddings(self) -> nn.Module:
        """``E``."""
        return self.backpack.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another ``E``."""
        self.backpack.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> BackpackOutput:
        """Logits; see :meth:`BackpackModel.forward`.

        Args:
            input_ids: as there.
            attention_mask: as there.
            position_ids: as there.
            past_key_values: as there.
            inputs_embeds: as there.
            use_cache: as there.
            labels: tokens whose NLL is wanted, -100 for none; they are shifted here.
            logits_to_keep: how many of the last columns get logits, or which; 0 for all.
            **kwargs: what other models take; ignored.
        """
        inside = self.backpack(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        keep = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(inside.hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return BackpackOutput(loss, logits, inside.hidden, inside.past_key_values, inside.contextualization)


def register() -> None:
    """Make transformers' Auto classes know the model."""
    AutoConfig.register("backpack", BackpackConfig, exist_ok=True)
    AutoModelForCausalLM.register(BackpackConfig, BackpackForCausalLM, exist_ok=True)
