"""Golden files of DeepLabv3: mmsegmentation's ResNetV1c, ResNet, ASPPHead and FCNHead.

Run as ``make_golden_frameworks.py``, whose helpers these are:

    python tests/parity/make_golden_deeplab.py
"""

from __future__ import annotations

import numpy as np
import torch
from golden_files import gradients, make_image, normal, write
from make_golden_frameworks import import_mmseg, randomise, statistics

CLASSES = 5
NORM = dict(type="BN", requires_grad=True)


def make_model(deep: bool, classes: int = CLASSES) -> torch.nn.ModuleDict:
    import_mmseg()
    from mmseg.models.backbones.resnet import Bottleneck, ResNet, ResNetV1c
    from mmseg.models.decode_heads import ASPPHead, FCNHead

    kind = ResNetV1c if deep else ResNet
    kind.arch_settings = {50: (Bottleneck, (1, 2, 2))}
    backbone = kind(
        depth=50,
        stem_channels=4,
        base_channels=4,
        num_stages=3,
        out_indices=(0, 1, 2),
        strides=(1, 1, 1) if deep else (1, 2, 2),
        dilations=(1, 2, 4) if deep else (1, 1, 1),
        contract_dilation=deep,
        style="pytorch",
        norm_cfg=NORM,
        norm_eval=False,
    )
    head = dict(dropout_ratio=0.0, num_classes=classes, norm_cfg=NORM)
    return torch.nn.ModuleDict(
        dict(
            backbone=backbone,
            decode_head=ASPPHead(
                in_channels=64, channels=6, dilations=(1, 2, 3), in_index=2, **head
            ),
            auxiliary_head=FCNHead(
                in_channels=32,
                channels=4,
                in_index=1,
                num_convs=1,
                concat_input=False,
                **head,
            ),
        )
    )


def case(name, deep, train, batch, height, width, seed):
    rng = np.random.default_rng(seed)
    model = make_model(deep).double()
    randomise(model, rng)
    parameters = [(k, v.detach().clone()) for k, v in model.named_parameters()]
    parameters += [(k, v.clone()) for k, v in statistics(model)]
    model.train(train)
    image = make_image(rng, batch, height, width)
    maps = model["backbone"](image)
    logits = model["decode_head"](maps)
    auxiliary = model["auxiliary_head"](maps)
    outputs = dict(last=maps[-1], logits=logits, auxiliary=auxiliary)
    weights = {key: normal(rng, *x.shape) for key, x in outputs.items()}
    loss = sum((weights[key] * x).sum() for key, x in outputs.items())
    grads = dict(gradients(model, loss))
    after = {f"after.{k}": v for k, v in statistics(model)} if train else {}
    write(
        f"frameworks/{name}",
        dict(deep=deep, train=train),
        dict(image=image, **{f"weight_{k}": v for k, v in weights.items()}),
        dict(loss=loss, **outputs, **after),
        parameters,
        grads,
    )


if __name__ == "__main__":
    case("deeplab_v1c", True, False, 1, 37, 50, 1)
    case("deeplab_train", True, True, 3, 33, 26, 2)
    case("deeplab_plain", False, False, 1, 67, 90, 3)
