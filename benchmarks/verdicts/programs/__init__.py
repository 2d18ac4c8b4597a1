"""All programs by family, and which families are held out."""

from __future__ import annotations

from benchmarks.verdicts.program import Program
from benchmarks.verdicts.programs import (
    architectures,
    attention,
    autoencoder,
    convolution,
    gan,
    language,
    mlp,
    published_clouds,
    published_tables,
    recurrent,
    regression,
    residual,
    tabular,
)

# Fixed before any threshold was tuned. Rules may be tuned on the first five only.
TUNING: dict[str, tuple[Program, ...]] = {
    "mlp": mlp.PROGRAMS,
    "convolution": convolution.PROGRAMS,
    "recurrent": recurrent.PROGRAMS,
    "attention": attention.PROGRAMS,
    "regression": regression.PROGRAMS,
}
HELD_OUT: dict[str, tuple[Program, ...]] = {
    "published": published_clouds.PROGRAMS + published_tables.PROGRAMS,
    "residual": residual.PROGRAMS,
    "language": language.PROGRAMS,
    "autoencoder": autoencoder.PROGRAMS,
    "gan": gan.PROGRAMS,
    "architectures": architectures.PROGRAMS,
    "tabular": tabular.PROGRAMS,
}
FAMILIES = TUNING | HELD_OUT
PROGRAMS: dict[str, Program] = {
    program.name: program for programs in FAMILIES.values() for program in programs
}
FAMILY: dict[str, str] = {
    program.name: family for family, programs in FAMILIES.items() for program in programs
}
SPLITS = {"tuning": TUNING, "held-out": HELD_OUT, "all": FAMILIES}
