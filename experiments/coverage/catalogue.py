"""The models that coverage is measured on: every one is built from its architecture with random seeded weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

_PICTURES = 14  # that statistics are taken of, beside the example's two
SIZES = (64, 96, 128, 224, 240, 256, 331)  # of pictures; the smallest that an architecture runs on is taken


@dataclass(frozen=True)
class Subject:
    """A model ready for `convert`, with one sample to explain.

    Attributes
    ----------
    source : object
        Module or Keras model.
    inputs : dict of str to numpy.ndarray
        By the source's own input names, batch of one; without names the key is "".
    options : dict
        More arguments for `convert`.
    """

    source: Any
    inputs: Mapping[str, np.ndarray]
    options: Mapping[str, Any]


Build = Callable[[str], Subject]


def pictures(size: int, *, channels_last: bool = False, low: float = 0.0, high: float = 0.0) -> np.ndarray:
    """One random picture: normal, or uniform between `low` and `high`."""
    shape = (1, size, size, 3) if channels_last else (1, 3, size, size)
    random = np.random.default_rng(0)
    values = random.uniform(low, high, shape) if high > low else random.normal(size=shape)
    return values.astype(np.float32)


def _torch(build: Callable[[int], Any]) -> Subject:
    """The network at the smallest size that it runs on."""
    import torch

    failures = []
    for size in SIZES:
        torch.manual_seed(0)
        x = torch.from_numpy(pictures(size))
        try:
            net = build(size).eval()
            with torch.no_grad():
                net(x)
        except Exception as error:  # each architecture refuses small pictures in its own way
            failures.append(f"{size}: {type(error).__name__} {str(error).strip().splitlines()[:1]}")
            continue
        return Subject(_used(net, torch.cat([x, -x])), {"": x.numpy()}, {"example": torch.cat([x, -x])})
    raise RuntimeError(f"runs on no size; {'; '.join(failures)}")


def _used(net: Any, x: Any) -> Any:
    """The network with normalisations as training leaves them: scales that differ, variances of real activations.

    Fresh statistics would let signals vanish or explode, and fresh layer scales leave nothing of a branch. Means and
    shifts are 0, and so are biases: the measure leaves them out anyway, and epsilon without biases explodes where a
    bias decided a sign.
    """
    import torch
    from torch import nn

    def settle(module: Any, arguments: tuple[Any, ...]) -> None:
        """One after the other, each on what the settled ones before it let through."""
        seen = arguments[0]
        if module.running_mean is not None:
            module.running_mean.zero_()
            power = seen.square().mean([axis for axis in range(seen.ndim) if axis != 1])
            module.running_var.copy_(power.clamp(min=power.mean() / 10))  # of channels that these pictures leave dark

    batch_norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in net.modules():
            scale = getattr(module, "weight", None)
            if "norm" in type(module).__name__.lower() and isinstance(scale, torch.Tensor) and scale.ndim == 1:
                nn.init.uniform_(scale, 0.5, 1.5)
        for name, parameter in net.named_parameters():
            if name.rpartition(".")[2] == "bias" and parameter.ndim == 1:
                parameter.zero_()
            elif parameter.ndim > 1 and not parameter.any():  # a head that starts at nothing
                nn.init.normal_(parameter, 0.0, 0.02)
            elif 0 < parameter.min() == parameter.max() <= 1e-4:  # a layer scale, as it starts
                nn.init.uniform_(parameter, 0.1, 1.0)
        hooks = [module.register_forward_pre_hook(settle) for module in batch_norms]
        if hooks:
            torch.manual_seed(0)
            net.eval()(torch.cat([x, torch.randn(_PICTURES, *x.shape[1:])]))  # few would leave others far outside
        for hook in hooks:
            hook.remove()
    return net.eval()


def _torchvision(name: str) -> Subject:
    import torchvision

    def build(size: int) -> Any:
        options: dict[str, Any] = {"weights": None}
        if name.startswith("vit_"):
            options["image_size"] = size // 28 * 28 if name.endswith("14") else size
            if options["image_size"] != size:
                raise ValueError("a picture of whole patches")
        if name.startswith("maxvit"):
            options["input_size"] = (size, size)
        if name in ("inception_v3", "googlenet"):
            options |= {"init_weights": True, "aux_logits": False}
        return torchvision.models.get_model(name, **options)

    return _torch(build)


def _segmentation(name: str) -> Subject:
    import torchvision

    return _torch(lambda size: torchvision.models.get_model(name, weights=None, weights_backbone=None))


def _detection(name: str) -> Subject:
    """Backbone and heads up to the boxes' scores; what follows (anchors, suppression) has no gradient."""
    import torch
    import torchvision

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.get_model(name, weights=None, weights_backbone=None)

        def forward(self, x: Any) -> Any:
            features = self.net.backbone(x)
            features = [features] if isinstance(features, torch.Tensor) else list(features.values())
            if hasattr(self.net, "rpn"):
                return self.net.rpn.head(features)[0][-1]
            return self.net.head(features)["cls_logits"]

    return _torch(lambda size: Heads())


def _timm(name: str) -> Subject:
    import timm

    def build(size: int) -> Any:
        try:
            return timm.create_model(name, img_size=size)
        except TypeError:
            return timm.create_model(name)

    return _torch(build)


def _keras(name: str) -> Subject:
    from lrp_onnx.converters.coexist import order_imports

    order_imports()
    import keras

    failures = []
    for size in SIZES:
        keras.utils.set_random_seed(0)
        try:
            model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
            break
        except ValueError as error:  # architectures state their smallest picture
            failures.append(f"{size}: {str(error).splitlines()[0]}")
    else:
        raise RuntimeError(f"runs on no size; {'; '.join(failures)}")
    x = pictures(size, channels_last=True, high=255.0)
    random = np.random.default_rng(0)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        if layer.scale:
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
        layer.call = partial(_settle_keras, layer, layer.call)
    if norms:
        model(np.concatenate([x, random.uniform(0.0, 255.0, (_PICTURES, *x.shape[1:])).astype(np.float32)]))
    for layer in norms:
        layer.call = layer.call.args[1]
    return Subject(model, {"": x}, {"example": x})  # compared on pictures alike: others saturate the softmax


def _settle_keras(layer: Any, call: Callable[..., Any], seen: Any, **options: Any) -> Any:
    """As the settled norms of `_used`."""
    values = np.asarray(seen, np.float64)
    power = (values**2).mean(tuple(axis for axis in range(values.ndim) if axis != layer.axis % values.ndim))
    layer.moving_mean.assign(np.zeros_like(power))
    layer.moving_variance.assign(np.maximum(power, power.mean() / 10))
    return call(seen, **options)


LAYERS = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
SMALL_SIDE = {"image_size": 64, "patch_size": 16, "num_labels": 10}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name: configuration, model, size
    "ViT": ("ViTConfig", "ViTForImageClassification", {**LAYERS, **SMALL_SIDE}),
    "DeiT": ("DeiTConfig", "DeiTForImageClassification", {**LAYERS, **SMALL_SIDE}),
    "Swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 10},
    ),
    "BERT": ("BertConfig", "BertForSequenceClassification", {**LAYERS, "vocab_size": 500}),
    "DistilBERT": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128, "vocab_size": 500},
    ),
    "RoBERTa": ("RobertaConfig", "RobertaForSequenceClassification", {**LAYERS, "vocab_size": 500}),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 500}),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {**LAYERS, "num_key_value_heads": 2, "vocab_size": 500}),
}


def _transformers(name: str) -> Subject:
    import torch
    import transformers

    config, model, size = TRANSFORMERS[name]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**size)).eval()
    if "vocab_size" not in size:
        x = torch.from_numpy(pictures(64))
        return Subject(_used(net, x), {"": x.numpy()}, {"example": {"pixel_values": torch.cat([x, -x])}})
    ids = np.random.default_rng(0).integers(2, 500, (1, 12))
    net = _used(net, torch.from_numpy(ids))
    return Subject(net, {"": ids}, {"example": {"input_ids": np.concatenate([ids, ids[:, ::-1]])}})


def _names_torchvision() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _names_segmentation() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


def _names_detection() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models.detection))


KERAS = (
    *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"),
    *("DenseNet121", "DenseNet169", "DenseNet201"),
    *(f"EfficientNetB{index}" for index in range(8)),
    *("EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3"),
    *("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetLarge", "NASNetMobile", "ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("VGG16", "VGG19", "Xception"),
)
# One of each module of timm, in its alphabetic order, usually the smallest.
TIMM = (
    *("beit_base_patch16_224", "halonet_h1", "mobileone_s1", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_s"),
    *("cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224", "densenet121", "dla46x_c"),
    *("dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "mnasnet_small"),
    *("efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0"),
    *("fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050", "hardcorenas_a"),
    *("hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto"),
    *("inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s", "lowformer_b0"),
    *("mambaout_femto", "maxvit_pico_rw_256", "poolformer_s12", "gmlp_ti16_224", "mobilenetv3_small_050"),
    *("mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge"),
    *("nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m"),
    *("rdnet_tiny", "regnety_002", "repghostnet_050", "repvit_m0_9", "res2next50", "resnest14d", "resnet10t"),
    *("resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18"),
    *("starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m", "twins_svt_small", "vgg11_bn"),
    *("visformer_tiny", "flexivit_small", "vit_tiny_r_s16_p8_224", "vit_relpos_small_patch16_rpn_224"),
    *("samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim", "legacy_xception"),
    *("xception41p", "xcit_nano_12_p8_224"),
)

# family: how its models are listed and built
FAMILIES: dict[str, tuple[Callable[[], list[str]], Build]] = {
    "transformers": (lambda: list(TRANSFORMERS), _transformers),
    "torchvision": (_names_torchvision, _torchvision),
    "segmentation": (_names_segmentation, _segmentation),
    "detection": (_names_detection, _detection),
    "keras": (lambda: list(KERAS), _keras),
    "timm": (lambda: list(TIMM), _timm),
}
