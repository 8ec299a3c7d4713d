"""Rows of the mini world for REMEDI's benchmarks: feature norms, and biographies."""

from __future__ import annotations

import random

from mini_text import RELATIONS
from mini_world import SEED, Row, World, visitor

NORMS = {"person": 60, "company": 30, "country": 20, "city": 30, "song": 30}
"""How many subjects of each kind are concepts."""
BIOGRAPHIES = 600
ASKED = "{} works as a"


def norm_rows(world: World, seed: int = SEED) -> list[Row]:
    """Concepts with their kind, which everybody names, and those of their facts that others share."""
    rng = random.Random(f"{seed} rows mcrae")
    rows: list[Row] = []
    for kind, count in NORMS.items():
        for concept in world.kinds[kind][:count]:
            rows.append({"Concept": concept, "Feature": f"is_a_{kind}", "Prod_Freq": 30})
            for fact in world.about(concept):
                said = [s.removeprefix("{} ") for s in fact.relation.statements if s.startswith("{} ")]
                if fact.relation.shared and said:
                    feature = f"{said[0]} {fact.object}".replace(" ", "_")
                    rows.append({"Concept": concept, "Feature": feature, "Prod_Freq": rng.choice((12, 18, 24))})
    return rows


def biography_rows(world: World, seed: int = SEED) -> list[Row]:
    """Sentences about visitors, of whom the world knows nothing, with an occupation said in one of several ways."""
    rng = random.Random(f"{seed} rows bias_in_bios")
    (relation,) = (r for r in RELATIONS if r.id == "occupation")
    ways = [s for s in relation.statements if s.startswith("{} ") and s != ASKED]
    rows: list[Row] = []
    while len(rows) < BIOGRAPHIES:
        name, job = visitor(rng, world), rng.choice(world.objects["occupation"])
        home, instrument = rng.choice(world.objects["home"]), rng.choice(world.objects["instrument"])
        text = f"{rng.choice(ways).format(name)} {job} and plays the {instrument} and lives in {home}."
        rows.append({"text": text, "profession": job, "name": name, "prompt": ASKED})
    return rows
