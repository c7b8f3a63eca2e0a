"""Preprocessing does to a picture what the model was trained with, and can be undone to show it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from lrp_onnx.errors import DataError
from lrp_onnx.preprocess import PRESETS, Preprocess, as_rgb, guess_layout


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (300, 300), (100, 333)])
def test_imagenet_preset_agrees_with_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    pipeline = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = noise(*size)
    np.testing.assert_allclose(Preprocess.preset("imagenet")(image), pipeline(image).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("keras-caffe", [[10 - 103.939, 100 - 116.779, 200 - 123.68]]),
        ("keras-tf", [[200 / 127.5 - 1, 100 / 127.5 - 1, 10 / 127.5 - 1]]),
        ("keras-torch", [[(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (10 / 255 - 0.406) / 0.225]]),
        ("unit", [[200 / 255], [100 / 255], [10 / 255]]),
        ("efficientnet-lite", [[73 / 128], [-27 / 128], [-117 / 128]]),
    ],
)
def test_presets_scale_one_colour_as_their_frameworks_do(preset, expected):
    array = Preprocess.preset(preset, size=4)(Image.new("RGB", (9, 9), (200, 100, 10)))
    expected_array = np.broadcast_to(np.array(expected)[..., None] if len(expected) == 3 else expected, array.shape)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected_array, atol=1e-4 if preset == "keras-caffe" else 1e-6)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_inverse_shows_exactly_what_the_model_saw(preset, colour, layout):
    image = noise(30, 20)
    preprocess = Preprocess.preset(preset, size=(20, 30), resize="stretch", colour=colour, layout=layout)
    array = preprocess(image)
    assert array.shape == preprocess.shape == ((3, 20, 30) if layout == "NCHW" else (20, 30, 3))
    shown = preprocess.inverse(array)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, np.asarray(image))


def test_inverse_of_grey_is_a_grey_rgb_picture():
    preprocess = Preprocess(size=8, colour="L", range=(1, 0), mean=(0.5,), std=(0.5,))
    image = noise(8, 8, "L")
    array = preprocess(image)
    assert array.shape == (1, 8, 8)
    np.testing.assert_array_equal(preprocess.inverse(array), np.asarray(image.convert("RGB")))


def test_inverse_clips_and_checks_the_shape():
    preprocess = Preprocess(size=2)
    assert set(preprocess.inverse(np.full((3, 2, 2), 9.0)).flat) == {255}
    with pytest.raises(DataError, match=r"shape \(2, 2, 3\); expected \(3, 2, 2\)"):
        preprocess.inverse(np.zeros((2, 2, 3)))


@pytest.mark.parametrize("preset", PRESETS)
def test_bounds_are_the_values_of_black_and_white(preset):
    preprocess = Preprocess.preset(preset, size=1, layout="NCHW")
    low, high = preprocess.bounds()
    assert low.shape == high.shape == (3,)
    np.testing.assert_array_equal(low, preprocess(Image.new("RGB", (3, 3), "black"))[:, 0, 0])
    np.testing.assert_array_equal(high, preprocess(Image.new("RGB", (3, 3), "white"))[:, 0, 0])
    assert (low < high).all()


def test_bounds_of_an_inverted_range_are_still_low_then_high():
    low, high = Preprocess(colour="L", range=(1, 0)).bounds()
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_stretch_fills_the_size_and_letterbox_keeps_the_aspect():
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    stretched = Preprocess(size=(20, 20)).inverse(Preprocess(size=(20, 20))(red))
    assert (stretched == (255, 0, 0)).all()
    boxed = Preprocess(size=(20, 20), resize="letterbox")
    shown = boxed.inverse(boxed(red))
    assert (shown[5:15] == (255, 0, 0)).all()
    assert (shown[:5] == 114).all()
    assert (shown[15:] == 114).all()


def test_shortest_edge_covers_a_size_that_is_not_square_from_the_centre():
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 40:60] = 255
    preprocess = Preprocess(size=(20, 20), resize="shortest-edge", filter="nearest")
    assert (preprocess.inverse(preprocess(Image.fromarray(wide))) == 255).all()
    for width, height in [(100, 20), (20, 100), (31, 33)]:
        odd = Preprocess(size=(17, 40), resize="shortest-edge", crop=0.9)
        assert (odd.inverse(odd(Image.new("RGB", (width, height), "white"))) == 255).all()


@pytest.mark.parametrize("resize", ["stretch", "shortest-edge", "letterbox"])
@pytest.mark.parametrize("size", [(90, 40), (37, 91), (300, 200), (64, 64)])
def test_geometry_says_where_a_spot_of_the_picture_comes_to_lie(resize, size):
    width, height = size
    preprocess = Preprocess(size=(60, 80), resize=resize, crop=0.8, filter="box")
    ramps = np.zeros((height, width, 3), np.uint8)  # each pixel holds its own column and row
    ramps[..., 0] = np.arange(width) * 255 // width
    ramps[..., 1] = (np.arange(height) * 255 // height)[:, None]
    seen = preprocess(Image.fromarray(ramps)) * 255
    matrix = preprocess.geometry(width, height)
    rows, columns = np.mgrid[:60, :80] + 0.5
    x, y, _ = np.linalg.inv(matrix) @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    assert inside.sum() > 1000
    pixel = 255 / np.array([width, height])
    error_x = seen[0].ravel()[inside] - (x[inside] - 0.5) * pixel[0]
    error_y = seen[1].ravel()[inside] - (y[inside] - 0.5) * pixel[1]
    assert abs(error_x).max() < max(2, pixel[0])
    assert abs(error_y).max() < max(2, pixel[1])
    assert abs(error_x.mean()) < 1  # half a grey level is lost to the whole numbers above
    assert abs(error_y.mean()) < 1


@pytest.mark.parametrize("size", [(90, 40), (37, 91), (81, 60), (64, 64)])
def test_letterbox_is_that_of_pillow(size):
    image = noise(*size)
    padded = ImageOps.pad(image, (80, 61), Image.Resampling.BICUBIC, color=(114, 114, 114))
    array = Preprocess(size=(61, 80), resize="letterbox", filter="bicubic")(image)
    np.testing.assert_array_equal(np.rint(array * 255), np.moveaxis(np.asarray(padded), -1, 0))


def test_area_is_the_mean_of_the_pixels():
    image = noise(16, 16, "L")
    shrunk = Preprocess(size=2, filter="area", colour="L", range=(0, 255))(image)
    means = np.asarray(image).reshape(2, 8, 2, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(shrunk[0], means, atol=0.51)


def test_json_round_trip_keeps_every_field():
    preprocess = Preprocess(
        (100, 90), "shortest-edge", "lanczos", 0.9, "NHWC", "BGR", (-1, 1), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    )
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    assert Preprocess.from_metadata({"lrp_onnx.preprocess": preprocess.to_json()}) == preprocess
    assert Preprocess.from_metadata({"other": "1"}) is None
    assert Preprocess.from_json({"size": 64, "colour": "L", "mean": 0.5}).shape == (1, 64, 64)
    assert replace(Preprocess(), colour="L").channels == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"sise": 3}', "no field 'sise'; there are size, resize"),
        ('{"size": [0, 4]}', "positive integers"),
        ('{"size": 4.5}', "size is 4.5"),
        ('{"size": "big"}', "size is 'big'"),
        ('{"resize": "pad"}', "resize is 'pad'; expected one of stretch, shortest-edge, letterbox"),
        ('{"filter": "cubic"}', "filter is 'cubic'"),
        ('{"filter": ["box"]}', "filter is"),
        ('{"crop": 0}', "0 < crop <= 1"),
        ('{"layout": "CHW"}', "expected one of NCHW, NHWC"),
        ('{"colour": "CMYK"}', "expected one of RGB, BGR, L"),
        ('{"range": [1, 1]}', "two different values"),
        ('{"range": [0]}', r"range is \[0\]; expected 2 finite"),
        ('{"mean": [0, 0]}', "expected 1 or 3 finite"),
        ('{"std": [1, 0, 1]}', "above 0"),
        ('{"mean": NaN}', "finite"),
        ('{"mean": null}', "finite"),
    ],
)
def test_wrong_fields_are_named(text, said):
    with pytest.raises(DataError, match=said) as caught:
        Preprocess.from_json(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_named():
    with pytest.raises(DataError, match="no preset 'caffe'; there are imagenet, keras-caffe"):
        Preprocess.preset("caffe")


@pytest.mark.parametrize(
    ("shape", "layout", "colour", "size"),
    [
        (("N", 3, 32, 48), "NCHW", "RGB", (32, 48)),
        ((1, 32, 48, 3), "NHWC", "RGB", (32, 48)),
        ((None, 64, 64, 1), "NHWC", "L", (64, 64)),
        ((None, 1, 28, 28), "NCHW", "L", (28, 28)),
    ],
)
def test_the_input_shape_gives_a_default(shape, layout, colour, size):
    preprocess = Preprocess.from_input_shape(shape)
    assert (preprocess.layout, preprocess.colour, preprocess.size) == (layout, colour, size)
    assert preprocess.range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("N", 10), "cannot tell the picture layout"),
        ((None, 12, 64, 64), r"shape \(\?, 12, 64, 64\)"),
        ((1, 3, 8, 3), "cannot tell the picture layout"),
        (("N", 3, "height", 32), "leaves the picture's size open"),
        (("N", 4, 32, 32), "4 channels"),
    ],
)
def test_shapes_that_say_too_little_are_refused(shape, said):
    with pytest.raises(DataError, match=said):
        Preprocess.from_input_shape(shape)
    if said == "4 channels":
        assert guess_layout(shape) == "NCHW"


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left of the file is top of the scene
    turned = as_rgb(reopened(image, "PNG", exif=exif))
    assert turned.size == (10, 20)
    assert (turned.getpixel((5, 3)), turned.getpixel((5, 16))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    pixels = as_rgb(reopened(image.quantize(4) if mode == "P" else image.convert(mode), "PNG"))
    assert (pixels.getpixel((0, 0)), pixels.getpixel((1, 0))) == ((255, 255, 255), (0, 0, 0))


def test_a_transparent_colour_of_an_rgb_png_shows_white():
    image = reopened(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert as_rgb(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_pictures_are_scaled_to_eight(kind):
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert np.asarray(as_rgb(reopened(deep, kind)))[0, :, 0].tolist() == [0, 100, 255]


def test_floating_point_pictures_lie_in_zero_to_one():
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(as_rgb(unit))[0, :, 0].tolist() == [0, 128, 255]
    for value in (np.nan, 200.0, -1.0):
        with pytest.raises(DataError, match="save it as an 8- or 16-bit picture"):
            as_rgb(Image.fromarray(np.full((2, 2), value, np.float32)))


def test_cmyk_grey_bilevel_and_palette_become_rgb():
    assert as_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert as_rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert as_rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(Image.new("RGB", (1, 1), (9, 8, 7)).quantize(2)).getpixel((0, 0)) == (9, 8, 7)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert animated.n_frames == 2
    assert as_rgb(animated).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("said", "shape", "size"),
    [
        ({"preset": "imagenet"}, (3, 96, 80), (96, 80)),
        ({"preset": "keras-tf"}, (96, 80, 3), (96, 80)),
        ({"preset": "imagenet", "size": 64}, (3, 96, 80), (64, 64)),
        ({"preset": "imagenet"}, ("c", "h", "w"), (224, 224)),
        ({"preset": "imagenet"}, (96, 80, 3), (224, 224)),
        ({"preset": "imagenet"}, (10,), (224, 224)),
    ],
)
def test_a_size_left_out_is_that_of_the_models_input(said, shape, size):
    assert Preprocess.for_input(said, shape) == Preprocess.preset(said["preset"], size=size)
