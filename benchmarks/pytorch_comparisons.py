"""Plain PyTorch versions of the paper's other heads and of what it compares with.

Written from the method notes (sections 5, 6 and 10), slowly and without tricks, for the
golden files; names of parameters are the release's.
"""

import math

import torch
import torch.nn.functional as F
from pytorch_reference import (
    GroupWiseLinear,
    MLSegHead,
    SegmenterHead,
    VisionTransformer,
    _MaskHead,
    attend,
    group,
    pixel_cross_entropy,
    random,
    resize,
)
from torch import Tensor, nn


class GatheringHead(_MaskHead):
    """Any multi-label head on pooled features; raw class embeddings are gathered."""

    def __init__(self, num_classes, topk, image_head, dim, heads, downsample, dropout):
        super().__init__(num_classes, dim, heads, 2, dropout, nn.LayerNorm(topk))
        self.topk, self.downsample = topk, downsample
        self.img_cls_head = image_head

    def forward(self, tokens: Tensor, grid):
        feature_map = tokens.transpose(1, 2).unflatten(2, grid)
        pooled = F.adaptive_avg_pool2d(feature_map, self.downsample)
        scores = self.scores(pooled)
        indices = scores.argsort(dim=1, descending=True, stable=True)[:, : self.topk]
        classes = self.cls_emb[0][indices]
        pixels = self.proj_dec(tokens)
        logits = self.classify(pixels, classes, self.blocks, grid)
        return scores, indices, logits

    def scores(self, pooled: Tensor) -> Tensor:
        if isinstance(self.img_cls_head, DecoderScores):
            return self.img_cls_head(pooled, self.cls_emb[0])
        return self.img_cls_head(pooled).flatten(1)


class PoolingScores(nn.Sequential):
    """Average, 1x1 convolution with ReLU, 1x1 convolution."""

    def __init__(self, num_classes: int, dim: int):
        hidden = group(conv=nn.Conv2d(dim, dim, 1))
        super().__init__(
            nn.AdaptiveAvgPool2d(1), hidden, nn.Conv2d(dim, num_classes, 1)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return self[2](self[1]["conv"](self[0](pooled)).relu())


class _DecoderLayer(nn.Module):
    """Post-norm, cross-attention alone; LN epsilon 1e-5."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.multihead_attn = nn.MultiheadAttention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, positions: Tensor):
        held = self.multihead_attn  # only for its parameters
        inputs = x + queries, memory + positions, memory
        weights, biases = held.in_proj_weight.chunk(3), held.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(*args) for args in zip(inputs, weights, biases, strict=True)
        )
        x = self.norm2(x + held.out_proj(attend(q, k, v, self.heads, 0.0)))
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


def sine_positions(side: int, dim: int) -> Tensor:
    """[side*side, dim]: rows in the first half of the channels, columns after."""
    half = dim // 2
    table = torch.zeros(side, side, dim, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for channel in range(half):
                wave = math.sin if channel % 2 == 0 else math.cos
                frequency = 10000.0 ** (2 * (channel // 2) / half)
                for start, position in ((0, row), (half, column)):
                    turn = 2 * math.pi * (position + 1) / (side + 1e-6)
                    table[row, column, start + channel] = wave(turn / frequency)
    return table.flatten(0, 1)


class DecoderScores(nn.Module):
    """Two decoder layers from class embeddings to the pooled image."""

    def __init__(self, num_classes, dim, heads, hidden):
        super().__init__()
        self.input_proj = nn.Conv2d(dim, dim, 1)
        layers = nn.ModuleList(_DecoderLayer(dim, heads, hidden) for _ in range(2))
        decoder = group(layers=layers, norm=nn.LayerNorm(dim))
        self.transformer = group(decoder=decoder)
        self.fc = GroupWiseLinear(num_classes, dim)

    def forward(self, pooled: Tensor, classes: Tensor) -> Tensor:
        memory = self.input_proj(pooled).flatten(2).transpose(1, 2)
        positions = sine_positions(pooled.shape[-1], pooled.shape[1]).to(memory.dtype)
        x = memory.new_zeros(len(memory), *classes.shape)
        for layer in self.transformer["decoder"]["layers"]:
            x = layer(x, classes, memory, positions)
        return self.fc(self.transformer["decoder"]["norm"](x))


class LogitsHead(_MaskHead):
    """A label's score is the logit of its best cell among all classes (section 4.3's
    last remark; the release has no code of it)."""

    def __init__(self, num_classes, topk, dim, heads, dropout):
        super().__init__(num_classes, dim, heads, 2, dropout, nn.LayerNorm(topk))
        self.topk, self.class_norm = topk, nn.LayerNorm(num_classes)

    def forward(self, tokens: Tensor, grid):
        pixels, classes = self.proj_dec(tokens), self.cls_emb[0]
        every = classes.expand(len(tokens), -1, -1)
        logits = self.classify(pixels, every, self.blocks, grid, self.class_norm)
        scores = logits.amax(dim=(2, 3))
        indices = scores.argsort(dim=1, descending=True, stable=True)[:, : self.topk]
        logits = self.classify(pixels, classes[indices], self.blocks, grid)
        return scores, indices, logits


class _EncoderLayer(nn.Module):
    """Post-norm; positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor):
        placed = x + positions
        x = self.norm1(x + self.self_attn(placed, placed, x, need_weights=False)[0])
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class Query2Label(nn.Module):
    """The classifier of the independent scheme (section 8.1) on any backbone."""

    def __init__(self, backbone, num_classes, dim, heads, hidden, encoders, decoders):
        super().__init__()
        self.backbone = backbone
        encoder = nn.ModuleList(
            _EncoderLayer(dim, heads, hidden) for _ in range(encoders)
        )
        decoder = nn.ModuleList(
            _DecoderLayer(dim, heads, hidden) for _ in range(decoders)
        )
        self.transformer = group(
            encoder=group(layers=encoder),
            decoder=group(layers=decoder, norm=nn.LayerNorm(dim)),
        )
        self.query_embed = nn.Embedding(num_classes, dim)
        self.fc = GroupWiseLinear(num_classes, dim)

    def forward(self, image: Tensor) -> Tensor:
        memory, (height, width) = self.backbone(image)
        assert height == width
        positions = sine_positions(height, memory.shape[-1]).to(memory.dtype)
        for layer in self.transformer["encoder"]["layers"]:
            memory = layer(memory, positions)
        queries = self.query_embed.weight
        x = memory.new_zeros(len(memory), *queries.shape)
        for layer in self.transformer["decoder"]["layers"]:
            x = layer(x, queries, memory, positions)
        return self.fc(self.transformer["decoder"]["norm"](x))


def query2label_loss(scores: Tensor, presence: Tensor) -> Tensor:
    """Asymmetric loss with gammas 2 and 0, no clip, no gradient through the focus."""
    p = scores.sigmoid()
    focus = torch.where(presence, torch.ones_like(p), p**2).detach()
    right = torch.where(presence, p, 1.0 - p)
    return -1000.0 * (focus * right.clamp(min=1e-5).log()).mean()


class OCEVisionTransformer(VisionTransformer):
    """Class embeddings join the tokens before the last block."""

    def __init__(self, num_classes, **vit):
        super().__init__(**vit)
        self.cls_emb = random(1, num_classes, vit["embed_dim"])

    def forward(self, image: Tensor):
        blocks, norm = self.layers, self.ln1
        self.layers, self.ln1 = blocks[:-1], nn.Identity()
        with_class_token = []
        hook = self.ln1.register_forward_hook(
            lambda module, inputs, output: with_class_token.append(output)
        )
        _, grid = super().forward(image)
        hook.remove()
        self.layers, self.ln1 = blocks, norm
        (x,) = with_class_token
        classes = self.cls_emb.expand(len(x), -1, -1)
        x = norm(blocks[-1](torch.cat([x, classes], dim=1)))
        count = classes.shape[1]
        return (x[:, 1:-count], x[:, -count:]), grid


class OCEHead(MLSegHead):
    """The default head with classes that come from the backbone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.cls_emb

    def forward(self, tokens, grid):
        tokens, self.cls_emb = tokens
        return super().forward(tokens, grid)


class EncNetHead(SegmenterHead):
    """Residual encoding and a gate on the channels before everything else."""

    def __init__(self, num_classes, dim, heads, num_codes, dropout):
        super().__init__(num_classes, dim, heads, dropout)
        self.bottleneck = group(conv=nn.Conv2d(dim, dim, 3, padding=1))
        words = nn.ParameterDict({})
        words["codewords"], words["scale"] = random(num_codes, dim), random(num_codes)
        self.enc_module = group(
            encoding_project=group(conv=nn.Conv2d(dim, dim, 1)),
            encoding=nn.ModuleList([words, nn.BatchNorm1d(num_codes)]),
            fc=nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid()),
        )
        self.se_layer = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor, grid):
        module = self.enc_module
        x = tokens.transpose(1, 2).unflatten(2, grid)
        x = self.bottleneck["conv"](x).relu()
        cells = module["encoding_project"]["conv"](x).relu().flatten(2).transpose(1, 2)
        words, norm = module["encoding"]
        away = cells[:, :, None] - words["codewords"]  # [B, P, n, D]
        shares = (words["scale"] * away.square().sum(dim=-1)).softmax(dim=-1)
        encoded = (shares[..., None] * away).sum(dim=1)
        vector = norm(encoded).relu().mean(dim=1)
        gate = module["fc"](vector)[:, :, None, None]
        x = (x + x * gate).relu()
        logits = super().forward(x.flatten(2).transpose(1, 2), grid)
        return self.se_layer(vector), logits


class ESSNetHead(SegmenterHead):
    """Cosines in a few dimensions."""

    def __init__(self, num_classes, dim, heads, cosine_dim, dropout):
        super().__init__(num_classes, dim, heads, dropout)
        self.proj_patch, self.proj_classes = (random(dim, cosine_dim) for _ in range(2))


def nearest_class_loss(logits: Tensor, label_map: Tensor, nearest: int, ignore: int):
    """Cross-entropy of [own class ; best classes]; mean over all pixels."""
    logits = resize(logits, label_map.shape[-2:])
    best = logits.topk(nearest, dim=1).indices
    best = torch.where(best == label_map[:, None], best - 1, best)
    ids = torch.cat([label_map[:, None], best], dim=1)
    ids = torch.where((ids == -1) | (ids == ignore), torch.zeros_like(ids), ids)
    first = torch.where(label_map == ignore, label_map, torch.zeros_like(label_map))
    return pixel_cross_entropy(logits.gather(1, ids), first, ignore=ignore)
