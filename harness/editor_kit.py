"""The one door of editors that are made elsewhere: what a method of model editing is built from.

The contract (:class:`Editor` and what it is given and returns), the types that hold the ranges of hyperparameters, the
directions of an edit, the errors, and the mathematics that several methods share.  These names stay where they are, so
that no move inside the package breaks an editor.
"""

from __future__ import annotations

from harness.editing.directions import DIRECTIONS, LIKELIHOOD, PAIRED, Direction, Normalisation, floor, losses, nll
from harness.editing.edit import SLOT, Edit, Example, Probe
from harness.editing.editor import Editor, Learned, Pass, Wrapper
from harness.editing.hyperparameters import Count, NotNegative, Positive, Range, Share
from harness.editing.registry import configure, find
from harness.errors import (
    CheckFailed,
    DataError,
    HarnessError,
    ModelError,
    NumericalError,
    RestoreError,
    UsageError,
    near,
)
from harness.methods.context_templates import sample_templates
from harness.methods.descent import (
    DescentSettings,
    TokenisedEdit,
    descend,
    down_projection_parameters,
    feed_forward_matrices,
    log_likelihood,
    passes,
    tokenise,
)
from harness.methods.finetuning import Finetuning
from harness.methods.hypernetwork import Hypernetwork, Pair, Shape
from harness.methods.keys import find_fact_token, layer_at_depth, prompt_rows, read_keys, require_layers, template_notes
from harness.methods.kl_regulariser import KLRegulariser, kl_regulariser, summed_kl
from harness.methods.locate_then_edit import LocateThenEdit, Solver, Spread, ridge_solver, woodbury
from harness.methods.logit_ensemble import combine_logits, common_vocabulary
from harness.methods.rank_one import RankOne
from harness.methods.retrieval import Fact, Index, as_fact, fits_context, join_facts
from harness.methods.second_moments import Moment, moments
from harness.methods.supervised_tokens import SupervisedTokens, supervise_target
from harness.methods.value import optimise
from harness.methods.value_rows import Seam
from harness.models.activations import at_least_float32, capture_activations
from harness.models.lm import LM, Batch
from harness.patches.delta import Delta, Dense, LowRank, double, numerical_rank
from harness.patches.patch import Hook, LogitRule, Part, Patch, PromptRule, Step, patched, require_plain

__all__ = [
    "DIRECTIONS",
    "LIKELIHOOD",
    "LM",
    "PAIRED",
    "SLOT",
    "Batch",
    "CheckFailed",
    "Count",
    "DataError",
    "Delta",
    "Dense",
    "DescentSettings",
    "Direction",
    "Edit",
    "Editor",
    "Example",
    "Fact",
    "Finetuning",
    "HarnessError",
    "Hook",
    "Hypernetwork",
    "Index",
    "KLRegulariser",
    "Learned",
    "LocateThenEdit",
    "LogitRule",
    "LowRank",
    "ModelError",
    "Moment",
    "Normalisation",
    "NotNegative",
    "NumericalError",
    "Pair",
    "Part",
    "Pass",
    "Patch",
    "Positive",
    "Probe",
    "PromptRule",
    "Range",
    "RankOne",
    "RestoreError",
    "Seam",
    "Shape",
    "Share",
    "Solver",
    "Spread",
    "Step",
    "SupervisedTokens",
    "TokenisedEdit",
    "UsageError",
    "Wrapper",
    "as_fact",
    "at_least_float32",
    "capture_activations",
    "combine_logits",
    "common_vocabulary",
    "configure",
    "descend",
    "double",
    "down_projection_parameters",
    "feed_forward_matrices",
    "find",
    "find_fact_token",
    "fits_context",
    "floor",
    "join_facts",
    "kl_regulariser",
    "layer_at_depth",
    "log_likelihood",
    "losses",
    "moments",
    "near",
    "nll",
    "numerical_rank",
    "optimise",
    "passes",
    "patched",
    "prompt_rows",
    "read_keys",
    "require_layers",
    "require_plain",
    "ridge_solver",
    "sample_templates",
    "summed_kl",
    "supervise_target",
    "template_notes",
    "tokenise",
    "woodbury",
]
