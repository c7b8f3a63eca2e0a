"""The current weights of a network in training as ONNX: exported once, from then on only the weights are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lrp_onnx.converters import convert
from lrp_onnx.converters.base import one_line
from lrp_onnx.converters.quiet import quiet
from lrp_onnx.errors import ConversionError, LrpOnnxError
from lrp_onnx.runtime import open_session

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-4  # relative; a weight in the wrong place makes a far larger difference
_CHECKED = 8  # images to compare framework and ONNX Runtime on


class Template:
    """An ONNX model without the weights that change.

    Parameters
    ----------
    model : onnx.ModelProto
        With a value, or an input to stand for it, for each of `names`; is not modified.
    names : collection of str
        The tensors that change.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self.names = [tensor.name for tensor in (*graph.initializer, *graph.input) if tensor.name in names]
        for field in (graph.initializer, graph.input):
            kept = [entry for entry in field if entry.name not in names]
            del field[:]
            field.extend(kept)

    def filled(self, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The model with these weights, by name."""
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        result.graph.initializer.extend(onnx.numpy_helper.from_array(weights[name], name) for name in self.names)
        return result


class CurrentWeights(ABC):
    """Gives the network as ONNX, with the weights that it has now, each time it is called.

    The first call exports the network, writes weights into the result and compares ONNX Runtime with the framework.
    Later calls only write weights. Where that gives another function (weights that the exporter has folded into
    others), and after a change of the network's structure, the network is exported anew.

    Parameters
    ----------
    network : object
        Is never modified.
    images : array (n, …)
        Some inputs as the network takes them.

    Attributes
    ----------
    how : str
        How the last model came about; "" before the first call.
    """

    def __init__(self, network: Any, images: np.ndarray) -> None:
        self.network, self.images, self.how = network, images[:_CHECKED], ""
        self._structure: Any = None
        self._template: Template | None = None

    def __call__(self) -> onnx.ModelProto:
        """The network as it is now.

        Raises
        ------
        ConversionError
            It cannot be exported, or ONNX Runtime computes something else.
        """
        structure = self.structure()
        if structure != self._structure:
            self._template, self._structure = self._checked_template(), structure
        elif self._template is not None:
            self.how = "weights written into the graph of the first export"
        return self.exported() if self._template is None else self._template.filled(self.weights())

    def _checked_template(self) -> Template | None:
        try:
            template = self.template()
            difference = _difference(template.filled(self.weights()), self.images, self.outputs())
            if difference <= _TOLERANCE:
                self.how = f"exported and checked, relative difference {difference:.1g}"
                return template
            reason = f"a graph with exchanged weights differs by {difference:.2g}"
        except Exception as error:  # the frameworks raise anything on networks that they cannot trace
            reason = one_line(error)
        self.how = f"exported anew every time ({reason})"
        return None

    @abstractmethod
    def structure(self) -> Any:
        """Something that is equal as long as the same graph fits."""

    @abstractmethod
    def weights(self) -> dict[str, np.ndarray]:
        """The current weights by name."""

    @abstractmethod
    def template(self) -> Template:
        """The graph to write weights into."""

    @abstractmethod
    def outputs(self) -> np.ndarray:
        """What the network, as it is used after training, gives for the images."""

    @abstractmethod
    def exported(self) -> onnx.ModelProto:
        """The network exported and checked in full."""


class TorchWeights(CurrentWeights):
    """The same for an nn.Module; wrappers of `torch.compile` and distributed training are looked through."""

    @property
    def _module(self) -> torch.nn.Module:
        import torch

        module = self.network
        while True:
            if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
                module = module.module
            elif isinstance(compiled := getattr(module, "_orig_mod", None), torch.nn.Module):
                module = compiled
            else:
                return module

    def structure(self) -> Any:
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(self._module).items()}
        return repr(self._module), shapes

    def weights(self) -> dict[str, np.ndarray]:
        import torch

        half = (torch.float16, torch.bfloat16)
        tensors = {name: tensor.detach().cpu() for name, tensor in _tensors(self._module).items()}
        return {name: (t.float() if t.dtype in half else t).numpy() for name, t in tensors.items()}

    def template(self) -> Template:
        import torch

        # With weights of its own everywhere, whatever the exporter folded shows as a difference later.
        other, random = self._copy(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in _tensors(other).values():
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=random).to(tensor.dtype)
                    tensor.copy_(torch.where(tensor == 0, 0.01 * noise, tensor * (0.9 + 0.2 * noise)))
        names = {name for name, tensor in _tensors(other).items() if tensor.is_floating_point()}
        return Template(convert(other, example=self.images).model, names)

    def outputs(self) -> np.ndarray:
        import torch

        with torch.no_grad():
            output = self._copy()(torch.from_numpy(self.images))
        first = torch.utils._pytree.tree_leaves(output)[0]
        return np.asarray(first.numpy())

    def exported(self) -> onnx.ModelProto:
        return convert(self._module, example=self.images).model

    def _copy(self) -> torch.nn.Module:
        from lrp_onnx.converters.base import Request
        from lrp_onnx.converters.pytorch_load import private_copy

        return private_copy(self._module, Request(self._module))[0]


class KerasWeights(CurrentWeights):
    """The same for a Keras model on the TensorFlow backend."""

    def structure(self) -> Any:
        return [(weight.path, tuple(weight.shape)) for weight in self.network.weights]

    def weights(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(weight) for name, weight in self._variables().items()}

    def template(self) -> Template:
        # The weights are inputs while the graph is made, so that nothing can be folded into anything.
        import keras
        import tensorflow as tf

        from lrp_onnx.converters import tensorflow_graph

        variables = self._variables()

        def call(images: Any, *values: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables.values(), values, strict=True))):
                return tf.nest.flatten(self.network(images, training=False))

        with quiet():
            signature = [tf.TensorSpec((None, *self.images.shape[1:]), self.images.dtype)]
            signature += [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables.values()]
            function = tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
            outputs = [f"output_{index}" for index in range(len(function.outputs))]
            model = tensorflow_graph.to_onnx(function, ["input", *variables], outputs)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        return Template(model, variables)

    def outputs(self) -> np.ndarray:
        import tensorflow as tf

        return np.asarray(tf.nest.flatten(self.network(self.images, training=False))[0])

    def exported(self) -> onnx.ModelProto:
        return convert(self.network, example=self.images).model

    def _variables(self) -> dict[str, Any]:
        return {f"weight_{index}": weight for index, weight in enumerate(self.network.weights)}


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that have several names."""
    parameters, buffers = (kind(remove_duplicate=False) for kind in (module.named_parameters, module.named_buffers))
    return dict(parameters) | dict(buffers)


def _difference(model: onnx.ModelProto, images: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference between ONNX Runtime's first output and `expected`, relative to the largest of these."""
    session = open_session(model)
    (wanted,) = session.get_inputs()
    (output, *_) = session.run(None, {wanted.name: images})
    if output.shape != expected.shape:
        raise ConversionError(f"ONNX Runtime gives shape {output.shape}, the network {expected.shape}")
    if not np.isfinite(expected).all():
        raise LrpOnnxError("the network gives NaN or infinity on the validation images")
    return float(np.abs(output - expected).max()) / (float(np.abs(expected).max()) or 1.0)
