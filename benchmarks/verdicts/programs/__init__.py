"""All programs by family, and which families are held out."""

from __future__ import annotations

from benchmarks.verdicts.program import Program
from benchmarks.verdicts.programs import (
    agents,
    architectures,
    attention,
    audio,
    autoencoder,
    boxes,
    cells,
    convolution,
    coordinates,
    denoising,
    density,
    discrete,
    distillation,
    events,
    everyday,
    forecasts,
    gan,
    gates,
    graphs,
    heads,
    keypoints,
    language,
    metric,
    mixers,
    mlp,
    modalities,
    patches,
    physics,
    published_clouds,
    published_tables,
    ranking,
    recommender,
    recurrent,
    regression,
    residual,
    segmentation,
    sets,
    tabular,
    tagging,
    temporal,
    transfer,
    translation,
    views,
    vision,
)

# Rules may be tuned on these families only.
TUNING: dict[str, tuple[Program, ...]] = {
    "mlp": mlp.PROGRAMS,
    "convolution": convolution.PROGRAMS,
    "recurrent": recurrent.PROGRAMS,
    "attention": attention.PROGRAMS,
    "regression": regression.PROGRAMS,
    "published": published_clouds.PROGRAMS + published_tables.PROGRAMS,
    "residual": residual.PROGRAMS,
    "language": language.PROGRAMS,
    "autoencoder": autoencoder.PROGRAMS,
    "gan": gan.PROGRAMS,
    "architectures": architectures.PROGRAMS,
    "tabular": tabular.PROGRAMS,
    "segmentation": segmentation.PROGRAMS,
    "translation": translation.PROGRAMS,
    "physics": physics.PROGRAMS,
    "density": density.PROGRAMS,
    "transfer": transfer.PROGRAMS,
    "recommender": recommender.PROGRAMS,
    "temporal": temporal.PROGRAMS,
    "agents": agents.PROGRAMS,
    "audio": audio.PROGRAMS,
    "sets": sets.PROGRAMS,
    "gates": gates.PROGRAMS,
    "heads": heads.PROGRAMS,
    "cells": cells.PROGRAMS,
    "events": events.PROGRAMS,
    "vision": vision.PROGRAMS,
    "discrete": discrete.PROGRAMS,
    "metric": metric.PROGRAMS,
    "coordinates": coordinates.PROGRAMS,
    "graphs": graphs.PROGRAMS,
    "views": views.PROGRAMS,
    "boxes": boxes.PROGRAMS,
    "tagging": tagging.PROGRAMS,
    "modalities": modalities.PROGRAMS,
}
# Written by somebody who had read no rule and seen no verdict, before any rule is run on them.
# Those that were here before have been judged, published and learned from.
HELD_OUT: dict[str, tuple[Program, ...]] = {
    "ranking": ranking.PROGRAMS,
    "mixers": mixers.PROGRAMS,
    "keypoints": keypoints.PROGRAMS,
    "denoising": denoising.PROGRAMS,
    "patches": patches.PROGRAMS,
    "forecasts": forecasts.PROGRAMS,
    "distillation": distillation.PROGRAMS,
    "everyday": everyday.PROGRAMS,
}
FAMILIES = TUNING | HELD_OUT
PROGRAMS: dict[str, Program] = {
    program.name: program for programs in FAMILIES.values() for program in programs
}
FAMILY: dict[str, str] = {
    program.name: family for family, programs in FAMILIES.items() for program in programs
}
SPLITS = {"tuning": TUNING, "held-out": HELD_OUT, "all": FAMILIES}
