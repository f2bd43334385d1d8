"""MLSeg's Mask2Former (RankSeg) in PyTorch, tiny, for ``make_golden_region_mlseg.py``.

All but its backbone, written after masks.md 1 to 6 and method.md 11.1 and 11.2, with
the names of the authors' state dicts; the pixel decoder is that of transformers, whose
names `official` changes.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from golden_files import normal, ref
from make_golden_clips import axis
from make_golden_frameworks import randomise
from make_golden_region_models import FourGroups, LayerGroups
from torch import nn
from transformers.models.mask2former import modeling_mask2former

CLASSES, KEPT, QUERIES, LAYERS = 7, 4, 5, 4
DIMS = 4, 8, 16, 32  # of the backbone's maps, from fine to coarse
WIDTH, HEADS, LABEL_WIDTH = 8, 2, 12


def pixel_decoder():
    config = transformers.Mask2FormerConfig(
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=12,
        encoder_layers=1,
        num_attention_heads=HEADS,
        dropout=0.0,
    )
    nn.GroupNorm = FourGroups
    module = modeling_mask2former.Mask2FormerPixelDecoder(config, list(DIMS))
    nn.GroupNorm = LayerGroups
    return module


NAMES = (
    (r"decoder\.(level_embed|encoder)", r"decoder.transformer.\1"),
    (r"self_attn_layer_norm", "norm1"),
    (r"final_layer_norm", "norm2"),
    (r"\.fc(\d)", r".linear\1"),
    (r"input_projections", "input_proj"),
    (r"(adapter|layer)_1\.0", r"\1_1"),
    (r"(adapter|layer)_1\.1", r"\1_1.norm"),
    (r"mask_projection", "mask_features"),
)
"""From the pixel decoder of transformers to the authors' (masks.md 8.1)."""


def official(name):
    if name.startswith("sem_seg_head.pixel_decoder."):
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
    return name


def attention():
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)


class Sublayer(nn.Module):
    """Some modules, and the norm behind them."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.norm = nn.LayerNorm(WIDTH)


def sublayers(make):
    return nn.ModuleList(Sublayer(**make()) for _ in range(LAYERS))


class Predictor(nn.Module):
    """Queries of a clip; a picture is a clip of one frame, without a place in time."""

    def __init__(self):
        super().__init__()
        self.query_feat = nn.Embedding(QUERIES, WIDTH)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.level_embed = nn.Embedding(3, WIDTH)
        self.class_embed = nn.Linear(WIDTH, CLASSES + 1, bias=False)
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.mask_embed = nn.Module()
        self.mask_embed.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in "123")
        self.transformer_cross_attention_layers = sublayers(
            lambda: dict(multihead_attn=attention())
        )
        self.transformer_self_attention_layers = sublayers(
            lambda: dict(self_attn=attention())
        )
        self.transformer_ffn_layers = sublayers(
            lambda: dict(linear1=nn.Linear(WIDTH, 10), linear2=nn.Linear(10, WIDTH))
        )

    def head(self, queries, mask_features):
        """Cosines with all classes and no-object, and masks in every frame."""
        queries = masks = self.decoder_norm(queries)
        for layer in self.mask_embed.layers[:-1]:
            masks = layer(masks).relu()
        masks = self.mask_embed.layers[-1](masks)
        rows = self.class_embed.weight
        queries = queries / queries.norm(dim=-1, keepdim=True)
        cosines = queries @ (rows / rows.norm(dim=-1, keepdim=True)).T
        return cosines, torch.einsum("bnd,btdhw->bnthw", masks, mask_features)

    def look(self, layer, queries, keys, values, masks, size, nearest):
        """One layer, which sees where the prediction before it has its mask."""
        seen = F.interpolate(
            masks.detach().flatten(0, 1),
            size=size,
            mode="bilinear",
            align_corners=False,
        )
        seen = seen.reshape(*masks.shape[:2], -1)
        nearest.append(seen.abs().min().item())
        blocked = seen < 0
        blocked[blocked.all(-1)] = False
        blocked = blocked.repeat_interleave(HEADS, 0)
        places = self.query_embed.weight
        cross = self.transformer_cross_attention_layers[layer]
        found, _ = cross.multihead_attn(
            queries + places, keys, values, attn_mask=blocked
        )
        queries = cross.norm(queries + found)
        own = self.transformer_self_attention_layers[layer]
        found, _ = own.self_attn(queries + places, queries + places, queries)
        queries = own.norm(queries + found)
        ffn = self.transformer_ffn_layers[layer]
        return ffn.norm(queries + ffn.linear2(ffn.linear1(queries).relu()))

    def forward(self, maps, mask_features, num_frames, nearest):
        """Of all predictions cosines [B P N C+1] and masks [B P N T h w], and the
        queries after three layers [B N D].
        """
        mask_features = mask_features.unflatten(0, (-1, max(num_frames, 1)))
        levels = []
        for level, each in enumerate(maps):
            values = each + self.level_embed.weight[level][:, None, None]
            keys = values + places_of(each, num_frames)
            levels.append(
                [self.tokens(x, num_frames) for x in (keys, values)] + [each.shape[2:]]
            )
        queries = self.query_feat.weight.expand(len(mask_features), -1, -1)
        found = [self.head(queries, mask_features)]
        for layer in range(LAYERS):
            keys, values, size = levels[layer % 3]
            queries = self.look(
                layer, queries, keys, values, found[-1][1], size, nearest
            )
            found.append(self.head(queries, mask_features))
            if layer == 2:
                after_three = queries
        cosines, masks = (torch.stack(x, dim=1) for x in zip(*found, strict=True))
        return cosines, masks, after_three

    @staticmethod
    def tokens(maps, num_frames):
        """[B*T D h w] to [B T*h*w D]."""
        maps = maps.unflatten(0, (-1, max(num_frames, 1))).permute(0, 1, 3, 4, 2)
        return maps.flatten(1, 3)


def places_of(maps, num_frames):
    """Rows and columns side by side, half the channels each; of clips plus all of time.
    [B*T D h w].
    """
    count, channels, height, width = maps.shape
    table = np.zeros((max(num_frames, 1), height, width, channels))
    table[..., : channels // 2] = axis(height, channels // 2)[None, :, None]
    table[..., channels // 2 :] = axis(width, channels // 2)[None, None]
    if num_frames:
        table += axis(num_frames, channels)[:, None, None]
    table = torch.tensor(table, dtype=maps.dtype).permute(0, 3, 1, 2)
    return table.repeat(count // len(table), 1, 1, 1)


class LabelHead(nn.Module):
    """Queries and class tokens through one block."""

    def __init__(self):
        super().__init__()
        self.proj_dec = nn.Linear(WIDTH, LABEL_WIDTH)
        self.cls_emb = ref.random(1, CLASSES, LABEL_WIDTH)
        self.block = ref._HeadBlock(LABEL_WIDTH, 2, 0.0)
        self.norm = nn.LayerNorm(LABEL_WIDTH)
        self.fc = ref.GroupWiseLinear(CLASSES, LABEL_WIDTH)

    def forward(self, queries):
        tokens = self.cls_emb.expand(len(queries), -1, -1)
        tokens = torch.cat([self.proj_dec(queries), tokens], dim=1)
        return self.fc(self.norm(self.block(tokens))[:, -CLASSES:])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = pixel_decoder()
        self.sem_seg_head.predictor = Predictor()
        self.ml_head = LabelHead()
        self.ml_norm = None

    def forward(self, maps, num_frames, nearest):
        """Cosines with all classes, masks of all predictions, scores of labels."""
        found = self.sem_seg_head.pixel_decoder(maps, return_dict=True)
        cosines, masks, queries = self.sem_seg_head.predictor(
            found.multi_scale_features, found.mask_features, num_frames, nearest
        )
        return cosines, masks, self.ml_head(queries)


def make_model(rng):
    """The model and its norms over ranks, by K."""
    model = Model().double().eval()
    randomise(model, rng)
    wider = {
        model.ml_head.cls_emb: 1.0,
        model.ml_head.fc.W: 0.3,
        model.sem_seg_head.predictor.query_feat.weight: 1.0,
    }
    norms = {k: nn.LayerNorm(k + 1).double() for k in (KEPT, CLASSES)}
    with torch.no_grad():
        for parameter, scale in wider.items():
            parameter.copy_(normal(rng, *parameter.shape, scale=scale))
        for norm in norms.values():
            randomise(norm, rng)
    return model, norms
