"""Reports built by hand, for tests of everything that shows one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from gradscope.records import (
    Event,
    Evidence,
    Finding,
    LayerInfo,
    NotChecked,
    ParameterInfo,
    Remedy,
    Report,
    Run,
)
from tests.runs import mlp_run

# Names that try to break out of markup, of attributes, of scripts, of plotly's markup and of the line.
NASTY = (
    "<script>window.broken = 1</script>",
    "\"'`><svg onload=window.broken=1>",
    "</script><!--<script>",
    "слой.层.ünïcødé",
    "שלום.עולם",
    "\u202eevil\u202c",
    "x" * 300,
    "a\nb\tc\x00",
    "<b>bold</b><br>",
    "&amp;&lt;",
    "{{ 7 * 7 }}{% raw %}",
    "%{y}<extra></extra>",
    "<a href='https://example.com/'>link</a>",
    "<img src=https://example.com/x onerror=window.broken=1>",
    "$\\alpha$",
    "",
)

REMEDIES = (
    Remedy(
        "initialization",
        "Initialise for sigmoid",
        "The default is too small.",
        "for layer in layers:\n    init(layer)\n",
        "gain 0.14 → 1.00",
    ),
    Remedy("residual", "Add skip connections", "A path of gain 1.", "x = x + block(x)", "gain near 1"),
)


def ailing_report(depth: int = 12, steps: int = 60) -> Report:
    """Build a report of vanishing gradients with a consequence, an independent finding and a note."""
    run = mlp_run(
        depth=depth,
        steps=steps,
        activation="sigmoid",
        loss=lambda step: 2.3,
        layer_values={"signal_rms": lambda step, place: 1e-3 * 0.141 ** (depth - 1 - place)},
        activation_values={"activation_saturated_fraction": lambda step, place: 0.02 * place},
        parameter_values={"update_ratio": lambda step, place: 1e-3 * 0.141 ** (depth - 1 - place)},
        events=[Event("skipped-step", 7, "the loss scaler skipped the update", "net.4")],
    )
    last = steps - 1
    findings = (
        Finding(
            "vanishing-gradient",
            "critical",
            "The gradient shrinks by 0.14 a layer.",
            ("net.0", "net.2"),
            ("net.0.weight",),
            0,
            last,
            "Sigmoid with the default initialisation.",
            {"gain_per_layer": 0.1398, "predicted_gain": 0.141},
            None,
            1,
            REMEDIES,
        ),
        Finding(
            "learning-rate-too-low",
            "warning",
            "Updates are tiny.",
            ("net.0",),
            caused_by="vanishing-gradient",
            rank=2,
        ),
        Finding("unscaled-input", "warning", "The input's rms is 117.", (), (), 3, 5, rank=3),
        Finding("over-clipping", "note", "Clipping acts often.", evidence={"clipped_fraction": 0.97}, rank=4),
    )
    return Report(
        run,
        "ailing",
        findings,
        (NotChecked("attention-collapse", "no attention layer"),),
        (Evidence("loss improvement", 0.0, "above 0.05", "the loss did not move"),),
    )


def healthy_report() -> Report:
    """Build a report of a healthy run."""
    evidence = (Evidence("gain per layer", 0.998, "0.87 to 1.15", "of the gradient signal"),)
    return Report(mlp_run(depth=6, steps=40), "healthy", evidence=evidence)


def nasty_report() -> Report:
    """Build a report whose every text is hostile and whose numbers may be missing, NaN, infinite or huge."""
    base = mlp_run(depth=8, steps=30)
    names = {layer.name: f"{NASTY[place]}" for place, layer in enumerate(base.layers)}
    layers = tuple(replace(layer, name=names[layer.name], kind=NASTY[0]) for layer in base.layers)
    parameters = tuple(
        replace(item, name=names[item.layer] + item.name[-5:], layer=names[item.layer])
        for item in base.parameters
    )
    renamed = {old.name: new.name for old, new in zip(base.parameters, parameters, strict=True)}
    stretch = 10**13
    run = replace(
        base,
        info=replace(
            base.info,
            model=NASTY[0],
            status="failed",
            exception=f"{NASTY[2]} \ud800",
            started="not a time",
            ended="2026-01-01T00:00:00Z",
            versions={NASTY[0]: NASTY[1]},
            training={NASTY[0]: NASTY[2], "clip_value": float("nan"), "devices": [1, {"a": 2}]},
            settings={"every_n_steps": NASTY[0]},
            layers=layers,
            parameters=parameters,
        ),
        steps=_broken(base.steps.assign(step=base.steps["step"] * stretch), 0),
        layer_statistics=_broken(
            base.layer_statistics.assign(
                step=base.layer_statistics["step"] * stretch,
                layer=base.layer_statistics["layer"].map(names),
            ),
            1,
        ),
        parameter_statistics=_broken(
            base.parameter_statistics.assign(
                step=base.parameter_statistics["step"] * stretch,
                parameter=base.parameter_statistics["parameter"].map(renamed),
            ),
            2,
        ),
        events=tuple(Event(text, 10**15, text, text, text) for text in NASTY),
        problems=NASTY,
        _tables={},
    )
    findings = tuple(
        Finding(
            rule,
            "critical",
            text,
            NASTY,
            NASTY,
            0,
            10**14,
            text,
            {text: float("nan"), "huge": float("inf"), "tiny": 5e-324},
            None,
            0,
            (Remedy(text, text, text, text, text),),
        )
        for text, rule in zip(NASTY, ("non-finite", "<b>rule</b>") * 8, strict=True)
    )
    evidence = tuple(Evidence(text, float("inf"), text, text) for text in NASTY)
    return Report(run, "ailing", findings, tuple(NotChecked(text, text) for text in NASTY), evidence)


def _broken(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Strew values that no statistic should have, but that a damaged file may."""
    random = np.random.default_rng(seed)
    table = table.copy()
    for column in table.columns.difference(["step", "layer", "parameter"]):
        values = table[column].to_numpy("float64").copy()
        for value in (np.nan, np.inf, -np.inf, -1.0, 0.0, 1.7e308, -1.7e308, 5e-324):
            values[random.random(len(values)) < 0.06] = value
        table[column] = values
    return table


def large_report(layers: int, steps: int) -> Report:
    """Build a report of random statistics for so many layers and steps, quickly."""
    random = np.random.default_rng(0)
    base = mlp_run(depth=2, steps=1)
    chain = tuple(
        LayerInfo(f"encoder.{place}.fc", "Linear", "linear", place, 1, (f"encoder.{place}.fc.weight",))
        for place in range(layers)
    )
    weights = tuple(ParameterInfo(layer.parameters[0], layer.name, "weight", (64, 64)) for layer in chain)
    index = np.repeat(np.arange(steps), layers)
    of_layers = pd.DataFrame({"step": index, "layer": [layer.name for layer in chain] * steps})
    for column in ("activation_rms", "signal_rms"):
        of_layers[column] = 10.0 ** random.normal(-3, 2, len(index))
    for column in ("activation_dead_unit_fraction", "activation_saturated_fraction"):
        of_layers[column] = random.random(len(index))
    of_layers["activation_cosine"] = 1 - of_layers["signal_rms"].clip(upper=1)
    of_layers["attention_entropy"] = random.random(len(index))
    of_weights = pd.DataFrame({"step": index, "parameter": [weight.name for weight in weights] * steps})
    of_weights["update_ratio"] = 10.0 ** random.normal(-3, 2, len(index))
    table = pd.DataFrame({"step": np.arange(steps), "lr": 0.1})
    for column in ("loss", "grad_norm", "clipped_grad_norm"):
        table[column] = random.random(steps)
    run = Run(base.path, replace(base.info, layers=chain, parameters=weights), table, of_layers, of_weights)
    names = tuple(layer.name for layer in chain)
    finding = Finding("vanishing-gradient", "critical", "It vanishes.", names, remedies=REMEDIES, rank=1)
    return Report(run, "ailing", (finding,))
