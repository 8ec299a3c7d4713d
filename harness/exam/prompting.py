"""How tasks are put to a model, in lm-eval's words: solved examples, a chat template, a system turn, thinking.

The fields are those of ``lm_eval``'s command line and mean what they mean there.  They are fields of a plan, so that
they stand in the record; what a default plan asks is what was asked before there were any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError, near

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.editing.edit import Edit

__all__ = [
    "FEWSHOT_SEED",
    "Prompting",
    "chat_template_text",
    "has_system_turn",
    "in_turns",
    "rendered",
    "require_roles",
    "require_room_to_think",
    "template_sha256",
    "told",
    "worded",
]

FEWSHOT_SEED = 1234
"""Which solved examples are drawn: lm-eval's own default, whatever the seed of a run, so that all runs ask alike."""

_SHOWN = 40
"""Characters of a system instruction that a heading has room for."""

_PROBE = "9b1f7"
"""A text that no template holds, by which it is seen what a template makes of a turn."""


@dataclass(frozen=True)
class Prompting:
    """How tasks are put to a model.

    Attributes:
        num_fewshot: solved examples in front of each question; None for the number that the task says, 0 as a rule. A
            task whose YAML says 0 has none, as in lm-eval.
        apply_chat_template: whether questions are turns of a chat; the name of a template where the tokenizer has
            several.
        system_instruction: what the system turn says; without a chat template it stands in front of all.
        fewshot_as_multiturn: whether each solved example is a turn of the user and one of the assistant; by default
            yes where there is a chat template.
        gen_kwargs: what is laid over the ``generation_kwargs`` of tasks that generate.
        enable_thinking: what the chat template is told of thinking; None tells it nothing.
        think_end_token: the text, or the number of the token, that ends a thought; what stands before it is no answer.
        thinking_budget: tokens of a thought at most, which is no word of lm-eval: then ``think_end_token`` is written
            for the model, and it answers. None for as many as there is room for.
        predict_only: whether texts are generated and kept, and no metric is computed.
        chat_edits: whether edits are turns of a chat as well, which is no word of lm-eval: the prompt is the turn of
            the user, and the target that of the assistant.
        backend: what writes texts, ``hf`` or ``vllm``.

    Raises:
        UsageError: two of them do not go together.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    enable_thinking: bool | None = None
    think_end_token: str | int | None = None
    thinking_budget: int | None = None
    predict_only: bool = False
    chat_edits: bool = False
    backend: str = "hf"

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UsageError(f"num_fewshot is {self.num_fewshot}, expected 0 or more; leave it out for the task's own")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise UsageError("fewshot_as_multiturn makes turns of a chat; add --apply-chat-template, or leave it out")
        if self.enable_thinking and not self.template:
            raise UsageError("enable_thinking is told to the chat template; add --apply-chat-template, or leave it out")
        if self.enable_thinking and self.think_end_token is None:
            raise UsageError("enable_thinking needs the text that ends a thought; add --think-end-token '</think>'")
        if self.thinking_budget is not None and self.thinking_budget < 1:
            raise UsageError(
                f"thinking_budget is {self.thinking_budget}, expected at least 1 token; leave it out for as many as "
                "there is room for"
            )

    @property
    def multiturn(self) -> bool:
        """Whether solved examples are turns of their own."""
        return bool(self.apply_chat_template) if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    @property
    def template(self) -> bool | str:
        """The chat template by which questions are asked or edits made: its name, True for the default, or False."""
        return self.apply_chat_template or self.chat_edits

    @property
    def template_args(self) -> dict[str, Any]:
        """What the chat template is told besides the turns."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}

    def shots(self, said: int | None) -> int:
        """The solved examples in front of each question of a task.

        Args:
            said: the number that the task says; None where it says none.
        """
        return said or 0 if self.num_fewshot is None or said == 0 else self.num_fewshot


_DEFAULTS = asdict(Prompting())


def worded(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which a plan asks otherwise than by default.

    Args:
        plan: the fields of a plan, as a record has them; others are passed over.
    """
    return {key: plan[key] for key, default in _DEFAULTS.items() if plan.get(key, default) != default}


def told(plan: Mapping[str, Any]) -> list[str]:
    """How a plan asks, in words for a heading; nothing where it asks as a task says.

    Args:
        plan: the fields of a plan, as a record has them.
    """
    return [_word(key, value) for key, value in worded(plan).items()]


def _word(key: str, value: Any) -> str:
    """One of them in words."""
    said = " ".join(str(value).split())
    words = {
        "num_fewshot": f"{value}-shot",
        "apply_chat_template": "chat template" if value is True else f"chat template {value}",
        "system_instruction": f"system: {said if len(said) <= _SHOWN else said[: _SHOWN - 3] + '...'}",
        "fewshot_as_multiturn": "examples as turns" if value else "examples in one turn",
        "gen_kwargs": ", ".join(f"{name}={one}" for name, one in value.items()) if isinstance(value, Mapping) else said,
        "enable_thinking": "thinking" if value else "no thinking",
        "think_end_token": f"answers after {value}",
        "thinking_budget": f"thoughts of {value} tokens at most",
        "predict_only": "texts only",
        "chat_edits": "edits in turns",
        "backend": f"texts by {value}",
    }
    return words[key]


# --- the template -----------------------------------------------------------------------------------------------------


def chat_template_text(tokenizer: PreTrainedTokenizerBase, name: bool | str = True, model: str = "the model") -> str:
    """The text of a chat template, in Jinja.

    Args:
        tokenizer: whose template.
        name: which of several; True for the one that is the default.
        model: what an error calls the model.

    Raises:
        UsageError: there is none, or none of that name.
    """
    known = tokenizer.chat_template
    if not known:
        raise UsageError(
            f"{model}: its tokenizer has no chat template; take a model that was made for chats, or leave "
            "--apply-chat-template out"
        )
    if isinstance(known, dict):
        wanted = name if isinstance(name, str) else "default"
        if wanted not in known:
            raise UsageError(
                f"{model}: its tokenizer has no chat template '{wanted}'{near(wanted, known)}; it has "
                f"{', '.join(sorted(known))}"
            )
        return str(known[wanted])
    if isinstance(name, str):
        raise UsageError(
            f"{model}: its tokenizer has one chat template, and none is named '{name}'; give --apply-chat-template "
            "without a name"
        )
    return str(known)


def template_sha256(tokenizer: PreTrainedTokenizerBase, name: bool | str, model: str = "the model") -> str:
    """The hash of the text of a chat template, which names it in a record.

    Args:
        tokenizer: whose template.
        name: which of several; True for the one that is the default.
        model: what an error calls the model.

    Raises:
        UsageError: there is none, or none of that name.
    """
    return hashlib.sha256(chat_template_text(tokenizer, name, model).encode()).hexdigest()


def require_roles(tokenizer: PreTrainedTokenizerBase, prompting: Prompting, model: str = "the model") -> None:
    """See that a chat template can say what is asked of it, before anything is measured.

    Args:
        tokenizer: whose template.
        prompting: how tasks are asked.
        model: what an error calls the model.

    Raises:
        UsageError: there is no template, or it has no turns of a role that is needed.
    """
    if not prompting.template:
        return
    text = chat_template_text(tokenizer, prompting.template, model)
    asked: dict[str, Sequence[str]] = {"user": ["user"]}
    if prompting.system_instruction:
        asked["system"] = ["system", "user"]
    if prompting.multiturn and prompting.num_fewshot:
        asked["assistant"] = ["user", "assistant", "user"]
    for role, turns in asked.items():
        if not _holds(tokenizer, text, turns, role, prompting):
            raise UsageError(f"{model}: its chat template has no turn of the role '{role}'; {_WITHOUT[role]}")


def has_system_turn(tokenizer: PreTrainedTokenizerBase, prompting: Prompting, model: str = "the model") -> bool:
    """Whether a chat template says what stands in a system turn.

    Args:
        tokenizer: whose template.
        prompting: which of its templates.
        model: what an error calls the model.

    Raises:
        UsageError: there is no template.
    """
    text = chat_template_text(tokenizer, prompting.template or True, model)
    return _holds(tokenizer, text, ["system", "user"], "system", prompting)


def require_room_to_think(prompting: Prompting, context: int, model: str = "the model") -> None:
    """See that a thought, its question and the answer can stand in the context of a model.

    Args:
        prompting: how tasks are asked.
        context: tokens that the model takes.
        model: what an error calls it.

    Raises:
        UsageError: the thought alone fills the context.
    """
    if prompting.thinking_budget is not None and prompting.thinking_budget >= context:
        raise UsageError(
            f"--thinking-budget {prompting.thinking_budget}: {model} takes {context} tokens in all, the question and "
            "the answer among them; give fewer"
        )


_WITHOUT = {
    "system": "leave --system-instruction out",
    "assistant": "give --fewshot-as-multiturn false",
    "user": "leave --apply-chat-template and --chat-edits out",
}
"""How to ask without turns of a role."""


def _holds(
    tokenizer: PreTrainedTokenizerBase, text: str, turns: Sequence[str], role: str, prompting: Prompting
) -> bool:
    """Whether a template says what stands in the turns of a role."""
    from jinja2 import TemplateError

    said = [{"role": one, "content": _PROBE if one == role else "x"} for one in turns]
    try:
        return _PROBE in rendered(tokenizer, said, text, more=prompting.template_args)
    except TemplateError:
        return False


def in_turns(
    edits: Sequence[Edit], tokenizer: PreTrainedTokenizerBase, prompting: Prompting, *, model: str = "the model"
) -> list[Edit]:
    """Edits as turns of a chat: each prompt is the turn of the user, and its target begins that of the assistant.

    What the template puts around a prompt is all that stands there: the tokens of an edit are those of its question
    in an exam by the same template.

    Args:
        edits: the edits.
        tokenizer: whose template.
        prompting: which of its templates, and what the system turn says.
        model: what an error calls the model.

    Raises:
        UsageError: there is no template, or it changes a prompt.
    """
    text = chat_template_text(tokenizer, prompting.template or True, model)
    system = [{"role": "system", "content": prompting.system_instruction}] if prompting.system_instruction else []
    found = []
    for edit in edits:
        turns = [*system, {"role": "user", "content": edit.question}]
        before, held, after = rendered(tokenizer, turns, text, more=prompting.template_args).rpartition(edit.question)
        if not held or not after:
            raise UsageError(
                f"edit {edit.id}: the chat template of {model} does not give '{edit.question}' as it is, with a turn "
                "of the assistant behind it; leave --chat-edits out"
            )
        found.append(replace(edit, before=before, after=after))
    return found


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, str]],
    template: str,
    *,
    more: Mapping[str, Any],
    begun: bool = True,
) -> str:
    """The text of a chat.

    Args:
        tokenizer: whose special tokens the template names.
        turns: each with its ``role`` and ``content``.
        template: the template, in Jinja.
        more: what it is told besides.
        begun: whether a turn of the assistant is begun; otherwise the last turn goes on.

    Raises:
        jinja2.TemplateError: the template does not take the turns.
    """
    said = [dict(turn) for turn in turns]
    return str(
        tokenizer.apply_chat_template(
            said,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=begun,
            continue_final_message=not begun,
            **more,
        )
    )
