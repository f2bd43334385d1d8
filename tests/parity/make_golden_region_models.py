"""Golden files of Mask2Former and MaskFormer of the transformers library.

Run with a Python that has torch and transformers 5 (neither is a requirement of the
project):

    python tests/parity/make_golden_region_models.py [case ...]

Tiny modules of the library with random values, all supervised predictions, gradients of
their products with random arrays, and a second picture of another size; files look as
those of ``make_golden.py``. Group norms have four groups, for widths are not 256.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import transformers
from make_golden import gradients, make_image, normal, write
from make_golden_frameworks import randomise

CLASSES = 7
QUERIES = 5
SWIN = dict(
    embed_dim=4,
    depths=[2, 2, 2, 2],
    num_heads=[1, 1, 2, 2],
    window_size=3,
    mlp_ratio=1.0,
    out_features=["stage1", "stage2", "stage3", "stage4"],
    drop_path_rate=0.0,
)
RESNET = dict(
    embedding_size=2,
    hidden_sizes=[8, 16, 32, 64],
    depths=[1, 2, 1, 1],
    out_features=SWIN["out_features"],
)
LEAST = 2e-5  # distance of mask logits from where a cell is seen or not
LayerGroups = torch.nn.GroupNorm


class FourGroups(LayerGroups):
    def __init__(self, num_groups, num_channels, **more):
        super().__init__(4, num_channels, **more)


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        feature_size=16,
        mask_feature_size=16,
        hidden_dim=16,
        encoder_feedforward_dim=16,
        encoder_layers=2,
        # One of them is the prediction before the first layer.
        decoder_layers=5,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=QUERIES,
        num_labels=CLASSES,
        dropout=0.0,
        use_auxiliary_loss=True,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    del model.model.pixel_level_module.encoder.swin.layernorm
    model.model.pixel_level_module.encoder.swin.layernorm = torch.nn.Identity()
    return model


def maskformer(backbone=None):
    decoder = transformers.DetrConfig(
        d_model=16,
        encoder_layers=0,
        decoder_layers=3,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        num_queries=QUERIES,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=backbone or transformers.MaskFormerSwinConfig(**SWIN),
        decoder_config=decoder,
        fpn_feature_size=16,
        mask_feature_size=16,
        num_labels=CLASSES,
        use_auxiliary_loss=True,
        output_auxiliary_logits=True,
    )
    model = transformers.MaskFormerForInstanceSegmentation(config)
    if not backbone:
        model.model.pixel_level_module.encoder.model.layernorm = torch.nn.Identity()
    return model


def maskformer_resnet():
    return maskformer(transformers.ResNetConfig(**RESNET))


def run(model, image):
    """Class logits [B P N C+1] and mask logits [B P N h w], the last one last."""
    more = dict(output_auxiliary_logits=True, output_hidden_states=True)
    found = model(pixel_values=image, **more)
    each = [*found.auxiliary_logits, found]
    names = "class_queries_logits", "masks_queries_logits"
    if hasattr(model, "mask_embedder"):
        each = supervised_as_published(model, found)
    return [
        torch.stack([one[name] for one in each], dim=1).contiguous() for name in names
    ]


def supervised_as_published(model, found):
    """The library's MaskFormer leaves the norm out before all heads but the last."""
    norm = model.model.transformer_module.decoder.layernorm
    # Before the first layer, after each, and the last one after the norm.
    states = found.transformer_decoder_hidden_states
    each = []
    for state in [*map(norm, states[1:-1]), states[-1]]:
        pixels = found.pixel_decoder_last_hidden_state
        masks = torch.einsum("bqc,bchw->bqhw", model.mask_embedder(state), pixels)
        classes = model.class_predictor(state)
        each.append(dict(class_queries_logits=classes, masks_queries_logits=masks))
    assert len(each) == 3
    for name, array in each[-1].items():
        torch.testing.assert_close(array, found[name])
    return each


def least_logit(model, image):
    """The mask logit nearest to 0 among those that say what a layer sees."""
    nearest = []

    def watch(module, inputs, outputs):
        resized = torch.nn.functional.interpolate(
            outputs[0], size=inputs[2], mode="bilinear", align_corners=False
        )
        nearest.append(resized.abs().min().item())

    for module in model.modules():
        if type(module).__name__ == "Mask2FormerMaskPredictor":
            module.register_forward_hook(watch)
    run(model, image)
    return min(nearest, default=1.0)


def case(name, make, sizes, seed):
    rng = np.random.default_rng(seed)
    torch.nn.GroupNorm = FourGroups
    model = make()
    torch.nn.GroupNorm = LayerGroups
    model.double().eval()
    randomise(model, rng)
    images = [make_image(rng, *size) for size in sizes]
    assert min(least_logit(model, image) for image in images) > LEAST, "another seed"
    (classes, masks), (small_classes, small_masks) = (run(model, x) for x in images)
    cotangents = [normal(rng, *x.shape) for x in (classes, masks)]
    loss = (classes * cotangents[0]).sum() + (masks * cotangents[1]).sum()
    # Those of the backbone are in files of its own.
    grads = {
        key: grad
        for key, grad in gradients(model, loss)
        if "pixel_level_module.encoder" not in key
    }
    running = {key: array for key, array in model.named_buffers() if ".running_" in key}
    write(
        name,
        {},
        dict(
            image=images[0],
            small_image=images[1],
            class_cotangent=cotangents[0],
            mask_cotangent=cotangents[1],
        ),
        dict(
            loss=loss,
            classes=classes,
            masks=masks,
            small_classes=small_classes,
            small_masks=small_masks,
        ),
        dict(model.named_parameters()) | running,
        grads,
    )


# Sides that neither 4 nor 32 divides, three pictures and one.
SIZES = [(3, 37, 54), (1, 42, 29)]
CASES = {
    "mask2former": lambda: case("frameworks/mask2former", mask2former, SIZES, 1),
    "maskformer": lambda: case("frameworks/maskformer", maskformer, SIZES, 2),
    "maskformer_resnet": lambda: case(
        "frameworks/maskformer_resnet", maskformer_resnet, SIZES, 3
    ),
}

if __name__ == "__main__":
    for each in sys.argv[1:] or CASES:
        CASES[each]()
