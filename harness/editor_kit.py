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
from harness.methods.context_templates import contexts
from harness.methods.descent import Answer, Settings, answers, descend, feed_forward, log_likelihood, matrices, passes
from harness.methods.finetuning import Finetuning
from harness.methods.hypernetwork import Hypernetwork, Pair, Shape
from harness.methods.keys import chosen, depth, keys, lookup, prompts, templates
from harness.methods.kl_regulariser import Prior, divergence, prior
from harness.methods.locate_then_edit import LocateThenEdit, Solver, Spread, ridge, woodbury
from harness.methods.logit_ensemble import combined, common_vocabulary
from harness.methods.rank_one import RankOne
from harness.methods.retrieval import Fact, Index, fact, fits, joined
from harness.methods.second_moments import Moment, moments
from harness.methods.supervised_tokens import Supervised, supervised
from harness.methods.value import optimise
from harness.methods.value_rows import Seam
from harness.models.activations import tap, wide
from harness.models.lm import LM, Batch
from harness.patches.delta import Delta, Dense, LowRank, double, numerical_rank
from harness.patches.patch import Hook, LogitRule, Part, Patch, PromptRule, Step, patched, require_plain

__all__ = [
    "DIRECTIONS",
    "LIKELIHOOD",
    "LM",
    "PAIRED",
    "SLOT",
    "Answer",
    "Batch",
    "CheckFailed",
    "Count",
    "DataError",
    "Delta",
    "Dense",
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
    "Prior",
    "Probe",
    "PromptRule",
    "Range",
    "RankOne",
    "RestoreError",
    "Seam",
    "Settings",
    "Shape",
    "Share",
    "Solver",
    "Spread",
    "Step",
    "Supervised",
    "UsageError",
    "Wrapper",
    "answers",
    "chosen",
    "combined",
    "common_vocabulary",
    "configure",
    "contexts",
    "depth",
    "descend",
    "divergence",
    "double",
    "fact",
    "feed_forward",
    "find",
    "fits",
    "floor",
    "joined",
    "keys",
    "log_likelihood",
    "lookup",
    "losses",
    "matrices",
    "moments",
    "near",
    "nll",
    "numerical_rank",
    "optimise",
    "passes",
    "patched",
    "prior",
    "prompts",
    "require_plain",
    "ridge",
    "supervised",
    "tap",
    "templates",
    "wide",
    "woodbury",
]
