"""Remedies of initialisation: He, Xavier, LeCun and orthogonal, by each layer's own activation."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median

from gradscope.prescribe.case import Case
from gradscope.prescribe.gains import EMBEDDING_SPREAD, gain_at, gain_with, scheme_for
from gradscope.prescribe.optimizer import with_fitting_steps
from gradscope.prescribe.paste import block, figure, name_list, some, through
from gradscope.records import LayerInfo, Remedy

NAMES = {"he": "He", "xavier": "Xavier", "lecun": "LeCun", "orthogonal": "orthogonal"}
SOURCES = {
    "he": "He et al. 2015",
    "xavier": "Glorot & Bengio 2010",
    "lecun": "LeCun et al. 1998, Klambauer et al. 2017",
    "orthogonal": "Saxe et al. 2014",
}
_CALLS = {
    "he": 'torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
    "xavier": "torch.nn.init.xavier_normal_(layer.weight)",
    "lecun": 'torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")',
    "orthogonal": "torch.nn.init.orthogonal_(layer.weight)",
}
# sigma_w² of a square layer, and how far from it counts as the same initialisation.
_VARIANCE = {"he": 2.0, "xavier": 1.0, "lecun": 1.0, "orthogonal": 1.0}
_SAME = 1.3
_FAR_OFF = 10.0
_SMALLER = 3.0
_AT_ONCE = 2
_SHUT = -1.0  # mean bias; pre-activations of usual weights have size 1
FADED = 1e-3  # a gradient of which less than this arrives at the first layer has vanished


def initialize(case: Case) -> Remedy | None:
    """Give each layer the initialisation that suits its activation, if that improves the gain."""
    scheme = scheme_for(case.activation)
    if (
        not case.hidden
        or _already(case, scheme)
        or not _improves(gain_before(case), gain_with(scheme, case.activation), case)
    ):
        return None
    return reinitialize(case)


def initialize_if_at_once(case: Case) -> Remedy | None:
    """Initialise by each layer's activation where numbers overflowed in the first steps already."""
    return initialize(case) if case.finding.first_step <= _AT_ONCE else None


def reinitialize(case: Case) -> Remedy | None:
    """Give each layer the initialisation that suits its activation."""
    layers = initializable(case)
    activation = case.activation
    scheme = scheme_for(activation)
    before, after = gain_before(case), gain_with(scheme, activation)
    if not layers:
        return None
    return Remedy(
        "initialization",
        f"Initialise with {NAMES[scheme]}'s scheme, made for {activation or 'linear layers'}",
        _why(case, scheme),
        initialization_code(case, layers),
        expect_gain(case, before, after),
        initialization_action(case, layers),
    )


def initialize_with_steps(case: Case) -> Remedy | None:
    """Initialise by each layer's activation and choose the steps anew, where the present ones don't suit."""
    return with_fitting_steps(case, initialize(case), size_after(case))


def initialize_with_smaller_steps(case: Case) -> Remedy | None:
    """Initialise and take a third of those steps, as no share of the weights fits every network."""
    size = size_after(case)
    return with_fitting_steps(case, initialize(case), size / _SMALLER if size else None)


def reinitialize_with_steps(case: Case) -> Remedy | None:
    """Initialise whatever the gain was, and choose the steps anew, where the present ones don't suit."""
    return with_fitting_steps(case, reinitialize(case), size_after(case))


def initialize_with_steps_if_far_off(case: Case) -> Remedy | None:
    """Initialise and choose the steps anew where the weights themselves make every step too large."""
    variance, scheme = weight_variance(case), scheme_for(case.activation)
    if variance is None or variance < _FAR_OFF * _VARIANCE[scheme]:
        return None
    return reinitialize_with_steps(case)


def initialize_everything(case: Case) -> Remedy | None:
    """Draw all weights anew, each layer's by its own activation."""
    if not initializable(case) and not case.recurrent:
        return None
    action: dict[str, object] = {"do": "initialize", "scheme": "own", "everything": True}
    return Remedy(
        "initialization",
        "Draw all weights anew",
        "Whatever the weights were born with, each layer's own scheme gives it a gain near 1: He's before a "
        "rectifier, Xavier's before others, orthogonal blocks in recurrences; norms start at 1, biases at 0.",
        block(
            "from gradscope.prescribe import surgery",
            "",
            f"model = surgery.apply({action!r}, model)",
        ),
        "The variance of signal and gradient stays the same from layer to layer.",
        action,
    )


def initialize_recurrence_with_steps(case: Case) -> Remedy | None:
    """Start recurrences orthogonally and choose the steps anew, where the present ones don't suit."""
    return with_fitting_steps(case, initialize_orthogonally(case))


def initialize_attention(case: Case) -> Remedy | None:
    """Draw what makes the attention's scores anew where it was sharp from the start."""
    if case.finding.first_step > _AT_ONCE:
        return None
    free = {layer.name for layer in initializable(case)}
    linear = [
        name
        for layer in case.run.layers
        if layer.activation == "softmax"
        for name in layer.inputs
        if name in free
    ]
    heads = [layer.name for layer in case.run.layers if layer.kind == "MultiheadAttention"]
    names = list(dict.fromkeys([*linear, *heads]))
    if not names:
        return None
    return Remedy(
        "initialization",
        f"Draw the weights of {some(names)} anew, with Xavier's scheme",
        "Attention that looks at single tokens before anything was learned has queries and keys that are too "
        "large: its softmax is saturated and passes no gradient to them.",
        block(
            "import torch",
            "",
            f"for name in {name_list(names)}:",
            "    layer = model.get_submodule(name)",
            '    for key in ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight"):',
            "        if getattr(layer, key, None) is not None:",
            "            torch.nn.init.xavier_uniform_(getattr(layer, key))",
        ),
        "Attention scores of size about 1; entropy near that of equal weights.",
        {"do": "initialize", "scheme": "xavier", "layers": names},
    )


def reinitialize_if_shut(case: Case) -> Remedy | None:
    """Draw layers anew whose biases start so far below zero that no input opens a unit."""
    if not case.number("dead_at_start"):
        return None
    initial = {
        item.name: item.initial.get("mean", 0.0) for item in case.run.parameters if item.role == "bias"
    }
    shut = [name for layer in case.weighted for name in layer.parameters if initial.get(name, 0.0) < _SHUT]
    return reinitialize(case) if shut else None


def break_symmetry(case: Case) -> Remedy | None:
    """Draw weights at random where they are constant, so that units stop being copies of each other."""
    blamed = set(case.finding.layers)
    free = initializable(case)
    constant = [layer for layer in free if _constant(case, layer)]
    layers = [layer for layer in free if layer.name in blamed or layer in constant] or free
    if not layers or (case.finding.rule != "symmetric-weights" and not constant):
        return None
    return Remedy(
        "initialization",
        f"Draw the weights of {some([layer.name for layer in layers])} at random",
        "Units that start with equal weights get equal gradients and stay copies of each other: "
        f"{'the layer' if len(layers) == 1 else 'each layer'} then learns no more than one unit could.",
        initialization_code(case, layers),
        "Units differ from the first step on; the gradient of each layer has full rank instead of rank 1.",
        initialization_action(case, layers),
    )


def draw_embeddings(case: Case) -> Remedy | None:
    """Draw embeddings at random that are all zero, where factors of zero pass each other no gradient."""
    names = [
        layer.name
        for layer in case.run.layers
        if layer.role == "embedding" and _constant(case, layer, "embedding")
    ]
    if not names:
        return None
    return Remedy(
        "initialization",
        f"Draw the embeddings of {some(names)} at random",
        "Entries that start equal get equal gradients, and where zero is multiplied by zero none at all.",
        block(
            "import torch",
            "",
            f"for name in {name_list(names)}:",
            f"    torch.nn.init.normal_(model.get_submodule(name).weight, std={EMBEDDING_SPREAD})",
        ),
        "Rows of the table differ, and each gets a gradient of its own.",
        {"do": "initialize", "scheme": "embedding", "layers": names},
    )


def initialize_orthogonally(case: Case) -> Remedy | None:
    """Start recurrences with orthogonal matrices and open forget gates: gain 1 per time step."""
    if not case.recurrent:
        return None
    names = [layer.name for layer in case.recurrent]
    gated = any("LSTM" in layer.kind for layer in case.recurrent)
    code = block(
        "import torch",
        "",
        f"for name in {name_list(names)}:",
        "    recurrence = model.get_submodule(name)",
        "    for key, parameter in recurrence.named_parameters():",
        '        if "weight_hh" in key:  # one block a gate',
        "            for gate in parameter.detach().split(recurrence.hidden_size):",
        "                torch.nn.init.orthogonal_(gate)",
        '        elif "weight_ih" in key:',
        "            torch.nn.init.xavier_uniform_(parameter)",
        _FORGET if gated else (),
    )
    return Remedy(
        "initialization",
        "Initialise the recurrence orthogonally" + (" and open the forget gates" if gated else ""),
        f"Going back through time multiplies the gradient by the recurrent matrix of {some(names)} once a "
        "step; only a matrix with all singular values 1 neither shrinks nor grows it"
        + (", and a forget gate with bias 1 keeps the cell (Jozefowicz et al. 2015)." if gated else "."),
        code,
        "Linear gain per time step → 1.00 (Saxe et al. 2014; Le et al. 2015).",
        {"do": "initialize", "scheme": "orthogonal", "layers": names},
    )


_FORGET = (
    '        elif "bias_ih" in key and parameter.shape[0] % 4 == 0:  # input, forget, cell, output gate',
    "            quarter = parameter.shape[0] // 4",
    "            parameter.detach()[quarter : 2 * quarter].fill_(1.0)",
)


def initializable(case: Case) -> list[LayerInfo]:
    """Return the weighted layers whose weight is trained and their own, not tied and not computed."""
    kept = {item.name for item in case.run.parameters if item.aliases or not item.trained}
    return [
        layer
        for layer in case.weighted
        if not any("parametrizations" in name or name in kept for name in layer.parameters)
        and (not layer.parameters or any(name.endswith("weight") for name in layer.parameters))
    ]


def initialization_code(case: Case, layers: list[LayerInfo], activation: str | None = None) -> str:
    """Return a loop for each scheme over its layers; `activation` replaces the hidden ones'."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in layers:
        own = _activation(case, layer, activation)
        groups[_scheme_of(case, layer, activation), own or "no activation"].append(layer.name)
    lines = ["import torch"]
    for (scheme, own), names in groups.items():
        lines += [
            "",
            f"# {NAMES[scheme]} ({SOURCES[scheme]}) before {own}",
            f"for name in {name_list(names)}:",
            "    layer = model.get_submodule(name)",
            f"    {_CALLS[scheme]}",
            "    if layer.bias is not None:",
            "        torch.nn.init.zeros_(layer.bias)",
        ]
    return "\n".join(lines)


def initialization_action(
    case: Case, layers: list[LayerInfo], activation: str | None = None
) -> dict[str, object]:
    """Return the machine's form: the scheme of each layer."""
    schemes = {layer.name: _scheme_of(case, layer, activation) for layer in layers}
    return {"do": "initialize", "scheme": schemes, "layers": list(schemes)}


def expect_gain(case: Case, before: float | None, after: float | None) -> str:
    """Return the expected effect on the gain per layer, and through the whole depth."""
    if after is None:
        return "The variance of signal and gradient stays the same from layer to layer."
    if before is None:
        return f"Gain per layer → {after:.2f}; through {case.depth} layers {through(after, case.depth)}."
    return (
        f"Gain per layer {figure(before)} → {after:.2f}; through {case.depth} layers "
        f"{through(before, case.depth)} → {through(after, case.depth)}."
    )


def gain_before(case: Case) -> float | None:
    """Return the gain per layer: measured, predicted, or from the initial weights; None if unknown."""
    if case.finding.rule.endswith(("-gradient", "-signal")) and case.gain:
        return case.gain
    return gain_at(case.activation, weight_variance(case))


def weight_variance(case: Case) -> float | None:
    """Return the median over hidden layers of fan-in times initial variance of the weights."""
    told = case.number("sigma_w2")
    if told is not None:
        return told
    known = {item.name: item for item in case.run.parameters if item.role == "weight"}
    values = [
        layer.fan_in * known[name].initial["std"] ** 2
        for layer in case.hidden or case.weighted
        for name in layer.parameters
        if layer.fan_in and name in known and math.isfinite(known[name].initial.get("std", math.nan))
    ]
    return median(values) if values else None


def _scheme_of(case: Case, layer: LayerInfo, activation: str | None = None) -> str:
    """Return the scheme that suits a layer; a recurrence written by hand is orthogonal, as one of torch's."""
    if case.is_repeated(layer) and layer.fan_in == layer.fan_out:
        return "orthogonal"
    return scheme_for(_activation(case, layer, activation))


def _activation(case: Case, layer: LayerInfo, activation: str | None) -> str | None:
    own = case.activation_of(layer)
    hidden = layer.name not in case.outputs
    return activation if activation and own and hidden else own


def _constant(case: Case, layer: LayerInfo, role: str = "weight") -> bool:
    """Say whether the weight of a layer started with equal entries, or equal units."""
    return any(
        item.initial.get("std") == 0 or item.initial.get("unit_spread") == 0
        for item in case.run.parameters
        if item.role == role and item.name in layer.parameters
    )


def size_after(case: Case, activation: str | None = None) -> float | None:
    """Return the median root mean square of the weights after initialising; `activation` as in the code."""
    sizes = [
        (_VARIANCE[_scheme_of(case, layer, activation)] / layer.fan_in) ** 0.5
        for layer in initializable(case)
        if layer.fan_in
    ]
    return median(sizes) if sizes else None


def _already(case: Case, scheme: str) -> bool:
    variance = weight_variance(case)
    return variance is not None and 1 / _SAME < variance / _VARIANCE[scheme] < _SAME


def _improves(before: float | None, after: float | None, case: Case) -> bool:
    if after is None:
        return True
    if after**case.depth < FADED:
        return False
    return before is None or abs(math.log(after)) < abs(math.log(before))


def _why(case: Case, scheme: str) -> str:
    variance = weight_variance(case)
    own = case.activation or "linear layers"
    target = f"{NAMES[scheme]}'s {figure(_VARIANCE[scheme])} for {own} ({SOURCES[scheme]})"
    if variance is None:
        return f"The scale of the weights decides whether signals keep their size; it should be {target}."
    return (
        f"Weight variance times fan-in is {figure(variance)} here, and should be {target}: "
        f"{'less fades' if variance < _VARIANCE[scheme] else 'more explodes'} layer by layer."
    )
