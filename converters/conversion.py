"""From any source form to one checked ONNX model: find the converter, try its routes, compare, write metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lrp_onnx.converters import factory, frozen_graph, keras_source, onnx_file, pytorch, tensorflow, tflite, verify
from lrp_onnx.converters.base import Converter, Loaded, Request, Route, fits, one_line
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.converters.precision import to_float32
from lrp_onnx.converters.quiet import quiet
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    from lrp_onnx.preprocess import Preprocess

# The first that matches is taken.
CONVERTERS: list[Converter] = [
    Converter("ONNX model or file", onnx_file.matches, onnx_file.load),
    Converter("Keras model", keras_source.matches_object, keras_source.load_object, ("custom_objects",)),
    Converter(
        "Keras file (.keras, .h5, .hdf5)", keras_source.matches_file, keras_source.load_file, ("custom_objects",)
    ),
    Converter("SavedModel folder", tensorflow.matches, tensorflow.load, ("signature",)),
    Converter("TensorFlow Lite file (.tflite)", tflite.matches, tflite.load),
    Converter("frozen TensorFlow graph (.pb)", frozen_graph.matches, frozen_graph.load, ("inputs", "outputs")),
    Converter("PyTorch module, exported program or ScriptModule", pytorch.matches_object, pytorch.load_object),
    Converter("PyTorch file (.pt2, .pt, .pth, .ts)", pytorch.matches_file, pytorch.load_file),
]

SOURCE_KEY, CLASSES_KEY = "lrp_onnx.source", "lrp_onnx.classes"


@dataclass(frozen=True)
class Conversion:
    """
    A converted model and how far it agrees with its source.

    Attributes
    ----------
    model : onnx.ModelProto
        Input and output names are the framework's, the free batch dimension is called "batch".
    framework : str
        "pytorch", "keras", "tensorflow", "tflite" or "onnx".
    how : str
        The exporter or route taken.
    difference : float
        Largest absolute difference between source and ONNX Runtime over all outputs; 0 for ONNX sources.
    relative : float
        The same, relative to the largest absolute reference output. Both in float64 where a note says so.
    notes : list of str
        What the user should know: routes that failed, weights that were widened, a fixed batch size.
    """

    model: onnx.ModelProto
    framework: str
    how: str
    difference: float
    relative: float
    notes: list[str]


def convert(
    source: Any,
    *,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    example: Any = None,
    trust_pickle: bool = False,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    signature: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    custom_objects: Mapping[str, Any] | Sequence[str] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Conversion:
    """
    Convert a model to ONNX and check the result against the source.

    Parameters
    ----------
    source : object, str or Path
        nn.Module, exported program, ScriptModule, Keras model, onnx.ModelProto; a `.onnx`, `.keras`, `.h5`, `.hdf5`,
        `.pt2`, `.pt`, `.pth`, `.ts`, `.tflite` or frozen `.pb` file; a SavedModel folder; or "package.module:factory"
        or "file.py:factory", a function without arguments that returns a model, or a model and an example. An object
        is not modified.
    weights : str or Path, optional
        Weights to load into the model first: `.safetensors`, `.pt` or `.pth` (PyTorch), `.weights.h5` (Keras).
    input_shape : sequence of int, optional
        Shape of one sample without the batch dimension, in the framework's own layout; one shape per input when
        there are several. Needed where the source does not say: nn.Module, TorchScript, a Keras model never called.
        Without it, the size in `preprocess` is used.
    example : array or tensor, tuple of them, or dict of them by argument name, optional
        Example inputs with batch dimension, instead of `input_shape`; they also set dtypes and the range of the
        random inputs. By name (PyTorch): the arguments of `forward` that become inputs.
    trust_pickle : bool
        Allow files whose loading runs code that they contain: pickled modules, Keras Lambda layers.
    preprocess : Preprocess or mapping, optional
        How images become inputs, such as {"preset": "imagenet"}; a size left out is that of the model's input. Written
        into the model's metadata, and random inputs are drawn from its range.
    classes : sequence of str, optional
        Class names in the order of the outputs; written into the model's metadata.
    signature : str, optional
        Which signature of a SavedModel; its only one, or "serving_default", where left out.
    inputs, outputs : sequence of str, optional
        Tensors of a frozen graph, such as "image:0"; its placeholders, and what nothing reads, where left out.
    custom_objects : dict of str to class or function, or sequence of "module:NAME", optional
        Layers and functions of a Keras model that Keras itself does not know.
    tolerance : float
        Largest relative difference to the source that is accepted.
    seed : int
        Seeds the random inputs, and the weights where a PyTorch factory makes random ones.

    Returns
    -------
    Conversion

    Raises
    ------
    ConversionError
        When the source is of no known form, cannot be read or exported, or the ONNX model computes something else.
    DataError
        When `preprocess` is not valid.
    """
    pictures = None if preprocess is None else _preprocess(preprocess, ())
    request = _request(source, weights, input_shape, example, pictures, trust_pickle, seed)
    request = replace(
        request,
        signature=signature,
        inputs=None if inputs is None else tuple(inputs),
        outputs=None if outputs is None else tuple(outputs),
    )
    with quiet():
        order_imports()
        loaded = _load(replace(request, custom_objects=_custom_objects(custom_objects)))
        if preprocess is not None:
            pictures = _preprocess(preprocess, loaded.inputs[0].shape)
            _check_pictures(loaded, pictures.shape)
        conversion = _first_that_agrees(loaded, request, pictures, tolerance)
    _write_metadata(conversion, loaded.version, pictures, classes)
    return conversion


def _preprocess(said: Preprocess | Mapping[str, Any], shape: Sequence[int | None]) -> Preprocess:
    from lrp_onnx.preprocess import Preprocess

    return Preprocess.for_input(said, shape)


def _request(
    source: Any,
    weights: str | Path | None,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None,
    example: Any,
    preprocess: Preprocess | None,
    trust_pickle: bool,
    seed: int,
) -> Request:
    if isinstance(source, str) and not factory.is_factory(source):
        source = Path(source)
    if isinstance(source, Path) and not source.exists():
        raise ConversionError(f"{source}: there is no such file or folder, and it is not of the form module:factory")
    shapes: tuple[tuple[int, ...], ...] | None = None
    if input_shape is not None:
        several = any(isinstance(shape, Sequence) for shape in input_shape)
        listed: Any = input_shape if several else (input_shape,)
        shapes = tuple(tuple(shape) for shape in listed)
        if not all(isinstance(size, int | np.integer) and size > 0 for shape in shapes for size in shape):
            raise ConversionError(f"input_shape: expected positive whole numbers without the batch, got {input_shape}")
    request = Request(
        source,
        weights=None if weights is None else Path(weights),
        shapes=shapes,
        picture=None if preprocess is None else preprocess.shape,
        trust_pickle=trust_pickle,
        seed=seed,
    )
    return request if example is None else _with_example(request, example)


def _with_example(request: Request, example: Any) -> Request:
    named = isinstance(example, Mapping)
    given = tuple(example.values()) if named else example if isinstance(example, tuple | list) else (example,)
    arrays = tuple(_array(value) for value in given)
    if not arrays or any(array.ndim < 1 or array.shape[0] < 1 for array in arrays):
        raise ConversionError("example: expected arrays whose first dimension is the batch, not empty")
    return replace(request, examples=arrays, names=tuple(map(str, example)) if named else None)


def _custom_objects(given: Mapping[str, Any] | Sequence[str] | None) -> Mapping[str, Any]:
    """By Keras' name: the class's own."""
    if given is None or isinstance(given, Mapping):
        return given or {}
    return {text.rpartition(":")[2].rpartition(".")[2]: factory.find(text) for text in given}


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _load(request: Request) -> Loaded:
    if isinstance(request.source, str):
        made = factory.build(request.source, request.seed)
        if isinstance(made, tuple) and len(made) == 2:
            request = request if request.examples is not None else _with_example(request, made[1])
            made = made[0]
        request = replace(request, source=made, owned=True)
    converter = next((converter for converter in CONVERTERS if converter.matches(request)), None)
    if converter is None:
        kind = type(request.source)
        what = request.path or f"an object of type {kind.__module__}.{kind.__qualname__}"
        known = "; ".join(converter.name for converter in CONVERTERS)
        raise ConversionError(f"{what} is of no form that can be converted; known: {known}; or module:factory")
    for option in ("signature", "inputs", "outputs", "custom_objects"):
        if getattr(request, option) and option not in converter.takes:
            raise ConversionError(
                f"{option} means nothing for a {converter.name}; it is for a "
                f"{next(known.name for known in CONVERTERS if option in known.takes)}"
            )
    return converter.load(request)


def _check_pictures(loaded: Loaded, shape: tuple[int, ...]) -> None:
    own = loaded.inputs[0].shape
    if len(loaded.inputs) == 1 and not fits(own, shape):
        raise ConversionError(
            f"preprocess gives arrays of shape {shape}, but the model's input {loaded.inputs[0].name!r} is {own} "
            "(one sample, None where free); mend its size, layout (NCHW or NHWC) or colour"
        )


def _first_that_agrees(loaded: Loaded, request: Request, preprocess: Preprocess | None, tolerance: float) -> Conversion:
    failures: list[str] = []
    compare = partial(verify.compare, examples=request.examples, preprocess=preprocess, seed=request.seed)
    for route in loaded.routes:
        try:
            model = _exported(route.export, loaded, route)
            agreement = compare(model, loaded, route)
        except ConversionError as error:
            failures.append(f"{route.how}: {error}")
            continue
        except Exception as error:
            failures.append(f"{route.how}: {one_line(error)}")
            continue
        if agreement.relative > (allowed := max(tolerance, loaded.rounding)):
            model, agreement = _beyond_rounding(model, agreement, loaded, route, compare, allowed)
        if agreement.relative > allowed:
            failures.append(
                f"{route.how}: outputs differ by {agreement.difference:.3g}, relative {agreement.relative:.3g}, "
                f"allowed {allowed:.3g}"
            )
            continue
        notes = [*loaded.notes, *(f"not used, {failure}" for failure in failures), *agreement.notes]
        if route.batch is not None and loaded.run is not None:
            notes.append(f"the model takes batches of exactly {route.batch}")
        return Conversion(model, loaded.framework, route.how, agreement.difference, agreement.relative, notes)
    reasons = "; ".join(failures)
    raise ConversionError(f"no {loaded.framework} route gives an ONNX model that agrees with the source; {reasons}")


def _exported(export: Callable[[], onnx.ModelProto], loaded: Loaded, route: Route) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(export())
    if loaded.run is not None:
        _name_dimensions(model, loaded, route)
    return model


def _beyond_rounding(
    model: onnx.ModelProto,
    rounded: verify.Agreement,
    loaded: Loaded,
    route: Route,
    compare: Callable[..., verify.Agreement],
    allowed: float,
) -> tuple[onnx.ModelProto, verify.Agreement]:
    """The model and its agreement in float64 where that is close, with a note on what float32 makes of it.

    Where the exporter rounded constants that it computed, the model is that of an export in float64, its constants
    rounded once. What came in, where nothing is close.
    """
    try:
        close, exact, told = model, compare(model, loaded, route, exactly=True), rounded
        if exact.relative > allowed and route.export_exactly is not None:
            close = _exported(route.export_exactly, loaded, route)
            exact = compare(close, loaded, route, exactly=True)
            to_float32(close)
            told = compare(close, loaded, route)
    except Exception:  # neither every framework nor every network runs in float64
        return model, rounded
    if exact.relative > allowed:
        return model, rounded
    note = (
        f"this network makes rounding errors large: outputs differ by {told.relative:.3g} of the largest in "
        f"float32, by {exact.relative:.3g} in float64, as compared here; explain it with --dtype float64"
    )
    return close, replace(exact, notes=(*exact.notes, note))


def _name_dimensions(model: onnx.ModelProto, loaded: Loaded, route: Route) -> None:
    """Call the free first dimension "batch", other free ones after their tensor and axis."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis == 0 and route.batch is None:
                dim.dim_param = "batch"
            elif not dim.HasField("dim_value"):
                dim.dim_param = f"{value.name}_{axis}"
    for value, spec in zip(model.graph.input, loaded.inputs, strict=True):
        for dim, size in zip(list(value.type.tensor_type.shape.dim)[1:], spec.shape, strict=True):
            if size is not None:
                dim.dim_value = size
    # Exporters leave shapes of inner tensors that name other dimensions; whoever needs them infers them anew.
    del model.graph.value_info[:]


def _write_metadata(
    conversion: Conversion, version: str, preprocess: Preprocess | None, classes: Sequence[str] | None
) -> None:
    from lrp_onnx.preprocess import METADATA_KEY

    entries: dict[str, str] = {
        SOURCE_KEY: json.dumps(
            {"framework": conversion.framework, "version": version, "exporter": conversion.how}, ensure_ascii=False
        )
    }
    if preprocess is not None:
        entries[METADATA_KEY] = preprocess.to_json()
    if classes is not None:
        _check_classes(conversion.model, classes)
        entries[CLASSES_KEY] = json.dumps([str(name) for name in classes], ensure_ascii=False)
    kept = {entry.key: entry.value for entry in conversion.model.metadata_props}
    onnx.helper.set_model_props(conversion.model, {**kept, **entries})


def _check_classes(model: onnx.ModelProto, classes: Sequence[str]) -> None:
    dims = model.graph.output[0].type.tensor_type.shape.dim
    outputs = dims[-1].dim_value if len(dims) == 2 else 0
    if outputs > 1 and outputs != len(classes):
        raise ConversionError(
            f"classes: the output {model.graph.output[0].name!r} has {outputs} scores, but {len(classes)} names came"
        )
