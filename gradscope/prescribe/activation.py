"""Remedies that replace the activation: a rectifier for a sigmoid, a leak for a dead one, SELU."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.gains import born_dead, gain_with, scheme_for
from gradscope.prescribe.initialization import (
    FADED,
    NAMES,
    expect_gain,
    gain_before,
    initializable,
    initialization_action,
    initialization_code,
    initialize_orthogonally,
    size_after,
)
from gradscope.prescribe.optimizer import with_fitting_steps
from gradscope.prescribe.paste import block, figure, joined, name_list
from gradscope.records import LayerInfo, Remedy

SQUASHING = ("sigmoid", "hardsigmoid", "logsigmoid", "softsign", "softmax")
BOUNDED = ("tanh", "hardtanh", "softsign", "sigmoid", "hardsigmoid")
RECTIFIERS = ("relu", "relu6")
GROWING = ("ExpBackward0", "Expm1Backward0", "PowBackward0", "SinhBackward0", "CoshBackward0")
MODULES = {
    "relu": "torch.nn.ReLU()",
    "leaky_relu": "torch.nn.LeakyReLU(0.01)",
    "elu": "torch.nn.ELU()",
    "selu": "torch.nn.SELU()",
    "gelu": "torch.nn.GELU()",
    "tanh": "torch.nn.Tanh()",
}
TITLES = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "tanh": "Tanh",
}
# Above this probability that a layer is born dead, a rectifier without a leak is no cure (Lu et al. 2019).
_RISK = 0.02
_ALL = 0.999


def replace_squashing(case: Case) -> Remedy | None:
    """Put ReLU with He's initialisation for a sigmoid; ELU where ReLU may be born dead; tanh in recurrences.

    ELU and not tanh in narrow deep networks is what benchmarks/remedies taught.
    """
    if case.activation not in SQUASHING or (case.finding.rule == "poor-initialization" and _shallow(case)):
        return None
    risk = born_dead(len(case.hidden), case.width)
    recurrence = any(case.is_repeated(layer) for layer in case.weighted)
    target = "tanh" if recurrence else "relu" if risk < _RISK else "elu"
    slope = {"sigmoid": "0.25", "hardsigmoid": "0.17"}.get(case.activation)
    why = (
        f"The slope of {case.activation} is at most {slope}, so no scale of the weights keeps the gradient "
        "alive."
        if slope
        else f"{case.activation} flattens out, and with its slope the gradient fades."
    )
    if recurrence:
        why += " In a recurrence tanh keeps the state bounded, which ReLU does not."
    elif target == "elu":
        why += (
            f" ReLU would be born dead with probability {figure(risk)} at this width; no unit of ELU dies "
            "(Clevert et al. 2016)."
        )
    return replacement(case, target, why, initial=True)


def replace_squashing_by_elu(case: Case) -> Remedy | None:
    """Put ELU for a squashing activation, the next to try where ReLU is the first."""
    first = replace_squashing(case)
    if first is None:
        return None
    why = "No unit of ELU dies, and its mean output is nearer to 0 than ReLU's (Clevert et al. 2016)."
    return replacement(case, "elu", why, initial=True)


def replace_squashing_with_steps(case: Case) -> Remedy | None:
    """Replace a squashing activation and choose the steps anew, where the present ones don't suit."""
    return with_fitting_steps(case, replace_squashing(case), size_after(case, "relu"))


def bound_recurrence(case: Case) -> Remedy | None:
    """Put tanh for ReLU in torch's recurrence, whose state ReLU lets grow without bound."""
    names = [layer.name for layer in case.recurrent if layer.options.get("nonlinearity") == "relu"]
    initial = initialize_orthogonally(case)
    if not names or initial is None:
        return None
    code = block(
        f'for name in {name_list(names)}:  # or nonlinearity="tanh" where it is built',
        "    recurrence = model.get_submodule(name)",
        '    recurrence.nonlinearity, recurrence.mode = "tanh", "RNN_TANH"',
        "",
        initial.code,
    )
    bounded: dict[str, object] = {"do": "replace-activation", "to": "tanh", "layers": names}
    remedy = Remedy(
        "activation",
        "Use tanh instead of ReLU in the recurrence, started orthogonally",
        "With ReLU the state of a recurrence is multiplied at every time step and nothing bounds it; tanh "
        f"keeps it within 1. {initial.why}",
        code,
        "Size of the state at most 1 at every time step.",
        {"do": "all", "actions": [bounded, dict(initial.action)]},
    )
    return with_fitting_steps(case, remedy) or remedy


def replace_bounded(case: Case) -> Remedy | None:
    """Put ReLU and He's initialisation for a bounded activation that saturates."""
    if case.activation not in BOUNDED or born_dead(len(case.hidden), case.width) >= _RISK:
        return None
    why = f"{case.activation} is flat beyond a few units of input; ReLU never saturates for positive inputs."
    return replacement(case, "relu", why, initial=True)


def replace_unbounded(case: Case) -> Remedy | None:
    """Put ReLU for an activation that torch has no module for and that may overflow, such as exp."""
    growing = {
        name.removesuffix("Backward0").lower()
        for layer in case.run.layers
        for name in layer.functions
        if name in GROWING
    }
    if case.activation is not None:
        return None
    if growing:
        named = " and ".join(sorted(growing))
        why = f"forward() computes {named} between layers, which grows until it overflows."
        return replacement(case, "relu", why, initial=True)
    return _replace_unknown(case)


def _replace_unknown(case: Case) -> Remedy | None:
    """Put ReLU for modules of the user's own between the layers that made the first infinite value."""
    kinds = {layer.name: layer.kind for layer in case.run.layers if _own_activation(layer)}
    kind = next((kinds[name] for name in case.finding.layers if name in kinds), None)
    if kind is None:
        return None
    names = [name for name, own in kinds.items() if own == kind]
    layers = initializable(case)
    action: dict[str, object] = {"do": "replace-activation", "to": "relu", "layers": names}
    return Remedy(
        "activation",
        f"Replace {kind} by ReLU, with He initialisation",
        f"The first value that is not finite came out of {case.finding.layers[0]}, a {kind}, which stands "
        "between the layers as their activation; what outgrows its input overflows within a few layers.",
        joined(activation_code(case, "relu", names, action), initialization_code(case, layers, "relu")),
        "Gain per layer → 1.00.",
        {"do": "all", "actions": [action, _he_before(names, case, layers)]},
    )


def _own_activation(layer: LayerInfo) -> bool:
    return layer.role == "other" and not layer.parameters and len(layer.inputs) == 1


def _he_before(names: list[str], case: Case, layers: list[LayerInfo]) -> dict[str, object]:
    """Return the initialisation of each layer: He's for those whose output goes through what was replaced."""
    before = {name for layer in case.run.layers if layer.name in names for name in layer.inputs}
    schemes = {layer.name: "he" if layer.name in before else "xavier" for layer in layers}
    return {"do": "initialize", "scheme": schemes, "layers": list(schemes)}


def leak(case: Case) -> Remedy | None:
    """Put LeakyReLU for ReLU: units that are never active still get a gradient."""
    if case.activation not in RECTIFIERS:
        return None
    share = case.number("dead_fraction")
    seen = f"Up to {100 * share:.0f} % of a layer's units" if share else "Some units"
    why = (
        f"{seen} are active for no sample, and ReLU passes no gradient to them; LeakyReLU passes 1 % of it, "
        "so they can come back (Maas et al. 2013)."
    )
    expected = "Gradient of an inactive unit 0 → 0.01 of an active one's; no unit can die for good."
    return replacement(case, "leaky_relu", why, expected=expected)


def leak_if_narrow(case: Case) -> Remedy | None:
    """Put LeakyReLU first of all where so few units a layer leave one dead layer likely."""
    return leak(case) if born_dead(len(case.hidden), case.width) >= _RISK else None


def self_normalize(case: Case) -> Remedy | None:
    """Put SELU and LeCun's initialisation in a plain network of linear layers."""
    if case.activation in (None, "selu") or case.convolutional or case.norms or case.recurrent or case.skips:
        return None
    why = (
        "SELU draws mean and variance of every layer back to 0 and 1, whatever came before "
        "(Klambauer et al. 2017), and no unit of it dies."
    )
    return replacement(case, "selu", why, initial=True)


def leak_if_dead(case: Case) -> Remedy | None:
    """Put LeakyReLU for ReLU where a layer's outputs are all zero."""
    zero = case.run.layer_table("activation_zero_fraction")
    names = [layer.name for layer in case.run.layers if layer.activation in RECTIFIERS]
    all_zero = len(zero) and (zero[names].tail(5).median() > _ALL).any() if names else False
    return leak(case) if all_zero else None


def smooth(case: Case) -> Remedy | None:
    """Put ELU for ReLU: a slope below zero that fades, but isn't 0 at once."""
    if case.activation not in RECTIFIERS:
        return None
    why = "ELU has a slope below zero too and a mean nearer to 0 (Clevert et al. 2016), so units recover."
    return replacement(case, "elu", why, expected="Slope of an inactive unit 0 → exp(x), above 0 everywhere.")


def _shallow(case: Case) -> bool:
    """Say whether the best initialisation alone would carry the gradient through all layers."""
    gain = gain_with(scheme_for(case.activation), case.activation)
    return gain is not None and gain**case.depth > FADED


def replacement(
    case: Case, to: str, why: str, initial: bool = False, expected: str | None = None
) -> Remedy | None:
    """Return the remedy that puts activation `to` after all hidden layers, initialised for it if asked."""
    old = case.activation
    layers = initializable(case) if initial else []
    if not case.activation_layers and not case.functional and old is not None:
        return None
    action: dict[str, object] = {"do": "replace-activation", "to": to}
    modules = [layer.name for layer in case.activation_layers]
    if old is not None:
        action["from"] = [old]
    if modules and not case.functional:
        action["layers"] = modules
    code = activation_code(case, to, modules, action)
    if layers:
        code = joined(code, initialization_code(case, layers, to))
        action = {"do": "all", "actions": [action, initialization_action(case, layers, to)]}
    scheme = scheme_for(to)
    return Remedy(
        "activation",
        f"Replace {TITLES.get(old or '', old or 'the activation')} by {TITLES[to]}"
        + (f", with {NAMES[scheme]} initialisation" if layers else ""),
        why,
        code,
        expected or expect_gain(case, gain_before(case), gain_with(scheme, to)),
        action,
    )


def activation_code(case: Case, to: str, modules: list[str], action: dict[str, object]) -> str:
    """Return code that swaps the modules, or, for activations called in forward(), rewrites a copy."""
    if modules and not case.functional:
        return block(
            "import torch",
            "",
            f"for name in {name_list(modules)}:",
            '    parent, _, child = name.rpartition(".")',
            f"    setattr(model.get_submodule(parent), child, {MODULES[to]})",
        )
    return block(
        "import torch",
        "from gradscope.prescribe import surgery",
        "",
        f"# The activation is called inside forward(): write torch.nn.functional.{to}(x) for it there,"
        if to != "tanh"
        else "# The activation is called inside forward(): write torch.tanh(x) for it there,",
        "# or let gradscope do that in a copy of the model:",
        f"model = surgery.apply({action!r}, model)",
    )
