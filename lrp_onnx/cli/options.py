"""Options that several commands have, and how their texts become what the library takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.errors import DataError, RuleError

if TYPE_CHECKING:
    from lrp_onnx.graph import Graph
    from lrp_onnx.rules import Composite

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder of pictures (flat, or a sub-folder per class), CSV manifest (image,label), .npy or .npz file; "
        "texts: .txt (one a line) or CSV (text,label). Several inputs: a column, or an array in the .npz, for each.",
        show_default=False,
    ),
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="NAME|FILE|JSON",
        help="How pictures become inputs: a preset (imagenet, keras-caffe, keras-tf, keras-torch, unit, "
        'efficientnet-lite), a JSON file, or JSON such as \'{"preset": "imagenet", "size": 299}\'. '
        "A size left out is that of the model. Overrides what the model says.",
        show_default=False,
    ),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Class names in the order of the outputs, one a line or a JSON list. Overrides what the model says.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="predicted|label|worst|CLASS|NAME:…",
        help="What is explained: the largest output, that of the label, or one by number or name of its class; "
        "worst: for regression, the output or landmark that is the farthest off; "
        "index:I,J,…: one element of each sample's output; "
        "position:P[,CLASS]: a class (the predicted one) at a position of a sequence, -1 for the last; "
        "segmentation:CLASS[,mask=FILE]: a class where it is predicted, or on a mask; "
        "box:best or box:B[,class=CLASS][,skip=S]: a box's score, with S numbers in front of the scores; "
        "similarity:FILE[,cosine|dot]: of an embedding to that in an .npy file, or of another picture or text.",
    ),
]
OutputNameOption = Annotated[
    str | None,
    typer.Option(
        "--output-name",
        metavar="NAME",
        help="Output of the model to use; `inspect` lists them.",
        show_default="the first",
    ),
]
VocabOption = Annotated[
    Path | None,
    typer.Option(
        "--vocab",
        metavar="FILE",
        help="For texts: a tokenizer.json, or a vocab.txt of WordPiece.",
        show_default=False,
    ),
]
BatchAxisOption = Annotated[
    list[str] | None,
    typer.Option(
        "--batch-axis",
        metavar="AXIS|NAME=AXIS",
        help="Which dimension of inputs and outputs holds the samples, from 0, where the model does not say it by the "
        "names of its dimensions: of all of them, or of one; repeatable.",
        show_default=False,
    ),
]
UnlabelledOption = Annotated[
    bool, typer.Option("--unlabelled", help="Read folders and labels that match no class as unlabelled.")
]
CompositeOption = Annotated[
    str,
    typer.Option(
        "--composite",
        metavar="NAME|FILE",
        help="Which node gets which rule: a TOML file, or epsilon, epsilon-plus, epsilon-plus-flat, "
        "epsilon-alpha2-beta1, epsilon-alpha2-beta1-flat, epsilon-gamma-box, montavon2019, excitation-backprop, hudd, "
        "attnlrp, cp-lrp, gradient, input-x-gradient, guided-backprop, deconvnet.",
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="OP=RULE",
        help='Rule for an op type, or for nodes by a pattern with "*" of their names, which `inspect --json` lists; '
        "repeatable.",
        show_default=False,
    ),
]
ExtensionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--extensions",
        metavar="FILE|MODULE",
        help="Python file or module with rules and ops of your own, run first; repeatable.",
        show_default=False,
    ),
]
EpsOption = Annotated[
    float | None, typer.Option("--eps", help="Stabiliser of the rules that have one.", show_default=False)
]
GammaOption = Annotated[float | None, typer.Option("--gamma", help="Parameter of the gamma rule.", show_default=False)]
BiasOption = Annotated[
    str | None,
    typer.Option(
        "--bias", metavar="absorb|ignore", help="Biases absorb relevance (default), or get none.", show_default=False
    ),
]
LowOption = Annotated[
    str | None,
    typer.Option(
        "--low",
        metavar="NUMBERS",
        help="Lowest input, one number or one per channel (z-box); from the preprocessing by default.",
        show_default=False,
    ),
]
HighOption = Annotated[
    str | None, typer.Option("--high", metavar="NUMBERS", help="Highest input, likewise.", show_default=False)
]
LossOption = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="mse|mae|landmarks",
        help="Regression: squared error (default), absolute error, or distance of landmarks x1,y1,x2,y2,… in pixels of "
        "the model's input.",
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Regression: a sample with a larger loss is an error.", show_default=False),
]
ClusteredStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="FILE",
        help="Heatmaps that were clustered, if they are no longer where they were.",
        show_default=False,
    ),
]
SmoothOption = Annotated[
    float,
    typer.Option("--smooth", help="Blur heatmaps before comparing them: standard deviation, % of the short edge."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="local:N|tcp://HOST:PORT",
        help="Compute in N processes of this machine, or on the workers of a Dask scheduler that see the same files.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def run_extensions(names: Sequence[str] | None) -> None:
    """Import files or modules, which register rules and ops."""
    if names:
        from lrp_onnx.converters.factory import load_module

        for name in names:
            load_module(name)


def read_shape(text: str) -> tuple[int, ...]:
    """The shape of one sample, such as "3,224,224"."""
    try:
        return tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        raise DataError(f"--input-shape {text}: expected whole numbers such as 3,224,224 (without the batch)") from None


def load_model(
    path: Path, preprocess: str | None, classes: Path | None, batch_axis: Sequence[str] | None = None
) -> Graph:
    """The model, with what the options say in place of its own metadata."""
    from lrp_onnx.batch_axis import read_batch_axis
    from lrp_onnx.inputs import load_described

    return load_described(path, preprocess, classes, read_batch_axis(batch_axis))


def read_composite(name: str, rules: Sequence[str] | None = None, **parameters: Any) -> Composite:
    """The composite that the options describe; parameters that are None are left to their rules."""
    from lrp_onnx.rules import Composite, composite

    given = {key: value for key, value in parameters.items() if value is not None}
    for key in {"low", "high"} & given.keys():
        given[key] = _numbers(key, given[key])
    chosen = Composite.from_toml(name) if name.endswith(".toml") else composite(name)
    chosen = chosen.with_parameters(given)
    overrides = {}
    for rule in rules or ():
        key, equals, value = rule.rpartition("=")
        if not (equals and key and value):
            raise RuleError(f"--rule {rule}: expected OP=RULE, such as Pow=gradient")
        overrides[key] = value
    return chosen.override(overrides) if overrides else chosen


def _numbers(option: str, text: str) -> float | list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise RuleError(f"--{option} {text}: expected a number, or one per channel separated by commas") from None
    return numbers[0] if len(numbers) == 1 else numbers
