"""Remedies that let signals pass by: residual connections."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.optimizer import with_fitting_steps
from gradscope.prescribe.paste import block, figure, name_list
from gradscope.records import LayerInfo, Remedy

_SHALLOWEST = 5
_DEEP = 16  # weighted layers
_SQUASHING = ("sigmoid", "hardsigmoid", "logsigmoid", "softsign", "softmax")


def add_skips(case: Case) -> Remedy | None:
    """Add the input to each layer's activated output, the branch scaled by 1/sqrt(their number)."""
    layers = bridgeable(case)
    depth = case.depth + len(_attention(case))
    if case.skips or depth < _SHALLOWEST or len(layers) < 2 or _unwritable(case):
        return None
    names = [layer.name for layer in layers]
    scale = float(f"{len(names) ** -0.5:.3g}")
    action = {"do": "residual", "layers": names, "scale": scale}
    return Remedy(
        "residual",
        f"Add residual connections around {len(names)} of {depth} layers",
        f"Through {depth} layers without a way past them the gradient is a product of {depth} "
        "factors; a "
        f"skip adds the identity to each (He et al. 2016). The branches are scaled by 1/sqrt({len(names)}) = "
        f"{figure(scale)}, so that their sum has the size of one (De & Smith 2020).",
        _code(case, layers, scale, action),
        "Gain per layer → at least 1.00 along the skips, at most e^0.5 = 1.65 through all of them together.",
        action,
    )


def skip_deep(case: Case) -> Remedy | None:
    """Add skips first of all in a deep network whose activation itself lets the gradient pass."""
    return add_skips(case) if case.depth >= _DEEP and case.activation not in _SQUASHING else None


def skip_deep_with_steps(case: Case) -> Remedy | None:
    """Add skips in a deep network and put Adam for an optimizer whose step follows the gradient's size."""
    return None if case.adaptive else with_fitting_steps(case, skip_deep(case))


def skip_norms(case: Case) -> Remedy | None:
    """Add skips where BatchNorm itself grows the gradient."""
    grows = any(layer.kind.startswith(("BatchNorm", "SyncBatchNorm")) for layer in case.norms)
    return add_skips(case) if grows else None


def bridgeable(case: Case) -> list[LayerInfo]:
    """Return the hidden and the attention layers whose input and output have the same shape."""
    found = []
    for layer in case.hidden:
        square = layer.role == "linear" and layer.fan_in == layer.fan_out
        options = layer.options
        same = (
            layer.role == "convolution"
            and options.get("in_channels") == options.get("out_channels")
            and options.get("stride", 1) == 1
            and "Transpose" not in layer.kind
            and _padded(options.get("kernel_size"), options.get("padding"))
        )
        if (square or same) and case.activation_of(layer):
            found.append(layer)
    shapes = {layer.name: layer.output_shape for layer in case.run.layers}
    for layer in _attention(case):
        if len(layer.inputs) == 1 and shapes.get(layer.inputs[0]) == layer.output_shape:
            found.append(layer)
    return sorted(found, key=lambda layer: layer.depth)


def _attention(case: Case) -> list[LayerInfo]:
    return [layer for layer in case.run.layers if layer.kind == "MultiheadAttention"]


def _unwritable(case: Case) -> bool:
    """Say whether a layer's name can't stand in the code of a rewritten forward()."""
    return any(set(layer.name) & set('"\\\n') for layer in case.run.layers)


def _padded(kernel: object, padding: object) -> bool:
    if padding == "same":
        return True
    return isinstance(kernel, int) and isinstance(padding, int) and kernel == 2 * padding + 1


def _code(case: Case, layers: list[LayerInfo], scale: float, action: dict[str, object]) -> str:
    pairs = [(layer.name, case.activation_behind.get(layer.name, layer).name) for layer in layers]
    if any(not _neighbours(*pair) for pair in pairs):
        return block(
            "from gradscope.prescribe import surgery",
            "",
            "# Add the input to the output of each layer, activated, in forward(), or let gradscope do it "
            "in a copy:",
            f"model = surgery.apply({action!r}, model)",
        )
    return block(
        "import torch",
        "",
        "",
        "class Residual(torch.nn.Module):",
        "    def __init__(self, *block, scale):",
        "        super().__init__()",
        "        self.block, self.scale = torch.nn.Sequential(*block), scale",
        "",
        "    def forward(self, x):",
        "        return x + self.scale * self.block(x)",
        "",
        "",
        f"for name in {name_list([pair[0] for pair in pairs])}:",
        '    parent, _, child = name.rpartition(".")',
        "    net, i = model.get_submodule(parent), int(child)  # a torch.nn.Sequential",
        f"    net[i], net[i + 1] = Residual(net[i], net[i + 1], scale={figure(scale)}), torch.nn.Identity()",
    )


def _neighbours(layer: str, activation: str) -> bool:
    """Say whether a layer and its activation follow each other in what is most likely a Sequential."""
    parent, _, child = layer.rpartition(".")
    other, _, following = activation.rpartition(".")
    return parent == other and child.isdigit() and following == str(int(child) + 1)
