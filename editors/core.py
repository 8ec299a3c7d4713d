"""CORE: MEMIT with values found behind the model's own texts about each fact, in which later layers shall agree.

Source: Park, Choi, Kim, Jo 2025, "Context-Robust Knowledge Editing for Language Models", Findings of ACL 2025,
arXiv 2505.23026, and the authors' code (holi-lab/CoRE at 8b613c4, EasyEdit/easyeditor/models/core).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from harness.editing.edit import Edit
from harness.editing.hyperparameters import Count, NotNegative, Positive
from harness.methods.context_templates import sample_about
from harness.methods.locate_then_edit import Solver, SpreadHidden, SpreadMemory, ridge_solver
from harness.methods.value import optimise_rows
from harness.methods.value_rows import Objective, prepare_edit
from harness.models.lm import LM
from harness.patches.patch import Patch

__all__ = ["Core"]


@dataclass(frozen=True)
class Core(SpreadHidden):
    """MEMIT's loss and ``agreement / (L d) sum_l sum_i<j ||h_i^l - h_j^l||^2`` over contexts ``i, j`` in ``L`` layers.

    ``h_i^l`` is what leaves layer ``l`` at the changed token behind context ``i``. The contexts of a value are texts
    that the model continues from the old answer, the subject and the new answer, besides the bare prompt; keys are read
    in MEMIT's own. With ``contexts`` given, both have those.

    Attributes:
        lam: weight of what the layer already knows, ``C`` (``mom2_update_weight``).
        agreement: weight of the last term (``reg_lambda``).
        agreement_layers: how many layers above the edited one count (``layer_range``); by default all.
        texts: contexts of a value, a third of them from each beginning (``ctx_num``).
        text_length: tokens of one of them, its beginning included (``ctx_len``).
    """

    name = "core"
    needs_old = True

    v_weight_decay: NotNegative = 1e-3
    clamp: Positive = 3.0
    lam: Positive = 15000.0
    agreement: NotNegative = 0.01
    agreement_layers: Count | None = None
    texts: Count = 15
    text_length: Count = 10

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # holi-lab/CoRE at 8b613c4, EasyEdit/hparams/CORE.
        "meta-llama-3-8b-instruct": {"layers": (4, 5, 6, 7, 8)},
        "mistral-7b-instruct-v0.3": {"layers": (4, 5), "clamp": 4.0, "agreement": 0.1},
        # The shipped models: MEMIT's layer, steps, bound and lam; the weight tried on the edit set's tuning rows.
        "mini-llama": {"layers": (0,), "v_steps": 40, "clamp": 6.0, "lam": 10.0, "agreement": 1e-4},
        "mini": {"layers": (0,), "v_steps": 40, "clamp": 10.0, "lam": 100.0, "agreement": 1e-4},
    }

    def objective(self, layer: int) -> Objective:
        """The value optimisation at one layer."""
        found = super().objective(layer)
        return replace(found, agreement=self.agreement, agreement_layers=self.agreement_layers)

    def values(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        prior: SpreadMemory,  # noqa: ARG002
        *,
        layer: int,
        begun: Sequence[Patch],
    ) -> Tensor:
        """The wanted hidden states, each found behind contexts of its own."""
        assert all(patch.empty for patch in begun), "there is one round"
        edits = [edit for group in groups for edit in group]
        whole = [prepare_edit(lm, edit, templates=self._about(lm, edit), fact_token=self.fact_token) for edit in edits]
        return optimise_rows(lm, whole, objective=self.objective(layer)).value

    def solver(self, prior: SpreadMemory) -> Solver:
        """Ridge regression against the second moments of the unedited model's keys."""
        return ridge_solver(prior, lam=self.lam)

    def _about(self, lm: LM, edit: Edit) -> tuple[str, ...]:
        """The contexts of an edit's value, the bare prompt first."""
        if self.contexts is not None:
            return self.contexts
        beginnings = [said for said in (edit.target_old or edit.against, edit.subject, edit.target) if said]
        # The same for an edit whatever others stand beside it.
        told = hashlib.sha256("\n".join([str(self.seed), edit.text, *beginnings]).encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))
        each = max(self.texts // len(beginnings), 1)
        return sample_about(lm, beginnings, each=each, length=self.text_length, generator=draw)
