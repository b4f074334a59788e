"""DINO's head: from maps of equal channels to boxes.

Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes" (arXiv 2203.03605). The encoded pixels propose boxes,
the best of which become the decoder's queries (mixed query selection, section 3.4); queries start from learned
contents and are refined layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agssp_zoo.models.base import is_capturing, valid_rows_columns
from agssp_zoo.models.deformable_attention import DeformableAttention, Shapes
from agssp_zoo.models.deformable_transformer import Decoder, Encoder, logit
from agssp_zoo.models.denoising import Denoising, make_denoising
from agssp_zoo.models.level_operators import flatten_levels
from agssp_zoo.models.sine_positions import encode_map
from agssp_zoo.models.targets import Targets

PROPOSAL_SIDE = 0.05
"""Side of a proposed box in the finest map, relative to the image; twice as large in each coarser one."""
PROPOSAL_BORDER = 0.01
"""Proposals whose centre or side comes nearer than this to 0 or 1 are none."""
OUTPUT_EPS = 1e-5
PRIOR = 0.01
"""Score of every class at first (Lin et al., "Focal Loss", arXiv 1708.02002, section 4.1)."""


class Tokens(NamedTuple):
    """The pixels of all maps in one row; B is the batch or, of all but the content, 1 where nothing is padded.

    Attributes:
        content: (B, N, C).
        positions: (B, N, C).
        centres: (B, N, 2) x, y of the pixels, relative to the valid image; beyond 1 in the padding.
        anchor_sides: (B, N, 1) of the boxes that the pixels propose, relative to the image.
        shapes: (height, width) of each level; see :data:`Shapes`.
        ratios: (B, L, 2) valid share of each level's width and height.
        valid: (B, N) bool; ``None`` where nothing is padded.
    """

    content: Tensor
    positions: Tensor
    centres: Tensor
    anchor_sides: Tensor
    shapes: Shapes
    ratios: Tensor
    valid: Tensor | None


class Answer(NamedTuple):
    """What the detector is asked for.

    Attributes:
        logits: (B, Q, classes).
        boxes: (B, Q, 4) cx, cy, w, h in 0-1, relative to the valid image.
    """

    logits: Tensor
    boxes: Tensor


class TrainingAnswer(NamedTuple):
    """What the loss looks at; D noisy queries come before the Q matched ones.

    Attributes:
        logits: (layers, B, D + Q, classes).
        boxes: (layers, B, D + Q, 4) cx, cy, w, h in 0-1.
        proposed_logits: (B, Q, classes) of the pixels that became queries.
        proposed_boxes: (B, Q, 4) likewise.
        denoising: what the noisy queries are; ``None`` where there are none.
        input_size: height and width of the input.
    """

    logits: Tensor
    boxes: Tensor
    proposed_logits: Tensor
    proposed_boxes: Tensor
    denoising: Denoising | None
    input_size: tuple[int, int]


class DinoHead(nn.Module):
    """Encoder, selection of queries, decoder and prediction layers.

    Args:
        num_classes: at least 1.
        channels: C, of the maps.
        levels: number of maps.
        queries: Q.
        layers: of the encoder, and as many of the decoder.
        hidden: width of the feed-forward parts.
        heads: of all attention.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 256,
        levels: int = 4,
        queries: int = 100,
        layers: int = 6,
        hidden: int = 2048,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries = num_classes, queries
        self.level_embed = nn.Parameter(torch.empty(levels, channels))
        self.encoder = Encoder(layers, channels, heads, hidden, levels)
        self.decoder = Decoder(layers, channels, heads, hidden, levels)
        self.memory_fc = nn.Linear(channels, channels)
        self.memory_norm = nn.LayerNorm(channels)
        self.query_embedding = nn.Embedding(queries, channels)
        self.label_embedding = nn.Embedding(num_classes, channels)
        # One more than the decoder has layers: the last ones judge the encoded pixels.
        self.class_layers = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(layers + 1))
        self.box_layers = nn.ModuleList(_box_layers(channels) for _ in range(layers + 1))

    def reset_parameters(self) -> None:
        """Draws new weights; at first every score is 0.01 and every box stays where it is proposed."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, DeformableAttention)):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.zeros_(module.in_proj_bias)
        for embedding in (self.level_embed, self.query_embedding.weight, self.label_embedding.weight):
            nn.init.normal_(embedding)
        for classes, box in zip(self.class_layers, self.box_layers, strict=True):
            nn.init.constant_(classes.get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))
            nn.init.zeros_(box.get_parameter("4.weight"))

    def forward(
        self,
        maps: Sequence[Tensor],
        input_size: tuple[int, int],
        sizes: Tensor | None = None,
        targets: Targets | None = None,
    ) -> Answer | TrainingAnswer:
        """Detects.

        Args:
            maps: [(B, C, h_i, w_i)], finest first.
            input_size: height and width of the network's input.
            sizes: (B, 2) or (1, 2) int64 valid height and width of each image; ``None``: all is valid.
            targets: the labelled boxes, in training only.
        """
        tokens = self.to_tokens(maps, input_size, sizes)
        memory = self.encode(tokens)
        logits, box_logits = self.propose(memory, tokens)
        chosen = self.choose(logits)
        started = box_logits.gather(1, chosen[..., None].expand(-1, -1, 4))
        references = started.detach().sigmoid()
        content = self.query_embedding.weight[: chosen.shape[1]].expand(memory.shape[0], -1, -1)
        if targets is None:
            answers, boxes = self.decode(content, references, memory, tokens)
            return self.answer(answers[-1], boxes[-1], len(answers) - 1)
        noisy = make_denoising(targets, input_size, self.num_classes, chosen.shape[1])
        if noisy is None:
            # Several processes wait for the gradients of everything that learns.
            content = content + 0 * self.label_embedding.weight.sum()
        else:
            content = torch.cat([self.label_embedding(noisy.labels).to(content.dtype), content], 1)
            references = torch.cat([logit(noisy.boxes, 1e-3).sigmoid(), references], 1)
        answers, boxes = self.decode(content, references, memory, tokens, None if noisy is None else noisy.hidden)
        layers = [self.answer(answer, box, i) for i, (answer, box) in enumerate(zip(answers, boxes, strict=True))]
        return TrainingAnswer(
            torch.stack([layer.logits for layer in layers]),
            torch.stack([layer.boxes for layer in layers]),
            logits.gather(1, chosen[..., None].expand(-1, -1, self.num_classes)),
            started.sigmoid(),
            noisy,
            input_size,
        )

    def to_tokens(self, maps: Sequence[Tensor], input_size: tuple[int, int], sizes: Tensor | None = None) -> Tokens:
        """Maps -> their pixels in one row; arguments as for :meth:`forward`."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        device = maps[0].device
        if sizes is None:
            sides = [(torch.ones(1, h, dtype=torch.bool), torch.ones(1, w, dtype=torch.bool)) for h, w in shapes]
            sides = [(rows.to(device), columns.to(device)) for rows, columns in sides]
        else:
            sides = [_valid_part(shape, input_size, sizes.to(device)) for shape in shapes]
        channels = self.level_embed.shape[1]
        places = [
            _places(rows, columns, embed, PROPOSAL_SIDE * 2**level)
            for level, ((rows, columns), embed) in enumerate(zip(sides, self.level_embed, strict=True))
        ]
        ratios = torch.stack(
            [torch.stack([columns.float().mean(1), rows.float().mean(1)], -1) for rows, columns in sides], 1
        )
        known: Shapes = shapes
        if is_capturing():
            # In one piece, so that the number of all pixels has one name.
            whole = [torch.cat([level, place], 1) for level, place in zip(maps, places, strict=True)]
            content, place = torch.ops.agssp_zoo.flatten_levels(whole).split([channels, channels + 4], -1)
            known = torch.stack([_lengths(rows, columns) for rows, columns in sides])
        else:
            content, place = flatten_levels(maps), flatten_levels(places)
        positions, centres, anchor_sides, valid = place.split([channels, 2, 1, 1], -1)
        return Tokens(
            content,
            positions.to(content.dtype),
            centres,
            anchor_sides,
            known,
            ratios,
            None if sizes is None else valid[..., 0] > 0,
        )

    def encode(self, tokens: Tokens) -> Tensor:
        """The encoded pixels (B, N, C)."""
        references = tokens.centres[:, :, None] * tokens.ratios[:, None]
        memory: Tensor = self.encoder(tokens.content, tokens.positions, references, tokens.shapes, tokens.valid)
        return memory

    def propose(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """What every pixel proposes: class logits (B, N, classes) and box logits (B, N, 4), infinite where none is."""
        anchors, there = self.anchors(tokens)
        memory = self.memory_norm(self.memory_fc(memory * there[..., None]))
        return self.class_layers[-1](memory), self.box_layers[-1](memory).float() + anchors

    def anchors(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Boxes around the pixels as logits (B or 1, N, 4), and where there are any, (B or 1, N) bool."""
        boxes = torch.cat([tokens.centres, tokens.anchor_sides, tokens.anchor_sides], -1)
        there = ((boxes > PROPOSAL_BORDER) & (boxes < 1 - PROPOSAL_BORDER)).all(-1)
        if tokens.valid is not None:
            there = there & tokens.valid
        return torch.where(there[..., None], boxes.clamp(1e-6, 1 - 1e-6).logit(), torch.inf), there

    def choose(self, logits: Tensor) -> Tensor:
        """The pixels (B, Q) whose best class has the highest logit; fewer where there are not as many pixels."""
        best = logits.amax(-1)
        count = self.num_queries if is_capturing() else min(self.num_queries, best.shape[1])
        return best.topk(count, 1).indices

    def decode(
        self, content: Tensor, references: Tensor, memory: Tensor, tokens: Tokens, hidden: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs the decoder; see :meth:`Decoder.forward`."""
        answers: tuple[list[Tensor], list[Tensor]] = self.decoder(
            content, references, memory, tokens.shapes, tokens.ratios, self.box_layers[:-1], tokens.valid, hidden
        )
        return answers

    def answer(self, answer: Tensor, box: Tensor, layer: int) -> Answer:
        """What a decoder layer says: its normalised answer (B, Q, C) and the boxes (B, Q, 4) that it began with."""
        correction = self.box_layers[layer](answer).float()
        return Answer(self.class_layers[layer](answer).float(), (correction + logit(box, OUTPUT_EPS)).sigmoid())


def _box_layers(channels: int) -> nn.Sequential:
    """Three linear layers with ReLUs between."""
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4)
    )


def _valid_part(shape: tuple[int, int], input_size: tuple[int, int], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a map whose first pixel of the input is valid: (B, h) and (B, w) bool."""
    rows, columns = valid_rows_columns(sizes, *input_size)
    first_rows, first_columns = (
        torch.arange(side, device=sizes.device) * full // side for side, full in zip(shape, input_size, strict=True)
    )
    return rows[:, first_rows], columns[:, first_columns]


def _places(rows: Tensor, columns: Tensor, embed: Tensor, anchor_side: float) -> Tensor:
    """What is known of a map's pixels without their content: (B, C + 4, h, w) float32.

    Args:
        rows: (B, h) bool, which are valid.
        columns: (B, w) bool, likewise.
        embed: (C,) of the level.
        anchor_side: of the level.

    Returns:
        positions, the centres' x and y relative to the valid part, the anchor's side, and 1 where a pixel is valid.
    """
    positions = encode_map(rows, columns, len(embed)) + embed.float()
    y, x = (
        (torch.arange(valid.shape[1], dtype=torch.float32, device=valid.device) + 0.5) / valid.sum(1, keepdim=True)
        for valid in (rows, columns)
    )
    valid = (rows[:, :, None] & columns[:, None]).float()
    x, y = x[:, None] + 0 * valid, y[:, :, None] + 0 * valid
    known = torch.stack([x, y, torch.full_like(valid, anchor_side), valid], -1)
    return torch.cat([positions, known], -1).permute(0, 3, 1, 2)


def _lengths(rows: Tensor, columns: Tensor) -> Tensor:
    """(2,) int64 height and width, computed where they may be symbols."""
    return torch.stack([torch.ones_like(valid[0], dtype=torch.int64).sum() for valid in (rows, columns)])
