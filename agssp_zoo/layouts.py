"""The layouts of the AGSSP authors' checkpoints (OpenMMLab's), and the settings their detectors were tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agssp_zoo.config import Postprocess, Preprocess

Renames = tuple[tuple[str, str], ...]


def _swin_stage(number: int) -> Renames:
    """Renames of a Swin's stage, which the authors count from 0; their merging of patches ends the stage before."""
    own = rf"^backbone\.stage{number}\."
    return (
        (rf"{own}norm\.", f"backbone.norm{number - 1}."),
        (rf"{own}downsample\.(norm|reduction)\.", rf"backbone.stages.{number - 2}.downsample.\1."),
        (rf"{own}blocks\.", f"backbone.stages.{number - 1}.blocks."),
    )


RENAMES: Renames = (
    (r"^head\.cls_branches\.", "bbox_head.head_module.cls_preds."),
    (r"^head\.box_branches\.", "bbox_head.head_module.reg_preds."),
    (r"^neck\.(top_down|bottom_up|downsample)\.", r"neck.\1_layers."),
    # Swin
    *(rename for number in range(1, 5) for rename in _swin_stage(number)),
    (r"^backbone\.stem\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.stem\.norm\.", "backbone.patch_embed.norm."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+\.attn)\.bias_table$", r"\1.w_msa.relative_position_bias_table"),
    (r"^(backbone\.stages\.\d\.blocks\.\d+\.attn)\.(qkv|proj)\.", r"\1.w_msa.\2."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"^(backbone\.stages\.\d\.blocks\.\d+)\.fc2\.", r"\1.ffn.layers.1."),
    # CSPDarknet, and the neck and the head of YOLOv8
    (r"^(backbone\.stage\d)\.downsample\.", r"\1.0."),
    (r"^(backbone\.stage\d)\.csp\.", r"\1.1."),
    (r"^(backbone\.stage\d)\.sppf\.conv_in\.", r"\1.2.conv1."),
    (r"^(backbone\.stage\d)\.sppf\.conv_out\.", r"\1.2.conv2."),
    (r"\.conv_in\.", ".main_conv."),
    (r"\.conv_out\.", ".final_conv."),
    (r"\.bottlenecks\.", ".blocks."),
    # Faster R-CNN
    (r"^neck\.pyramid\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^neck\.pyramid\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^head\.rpn\.conv\.", "rpn_head.rpn_conv."),
    (r"^head\.rpn\.objectness\.", "rpn_head.rpn_cls."),
    (r"^head\.rpn\.deltas\.", "rpn_head.rpn_reg."),
    (r"^head\.roi\.hidden\.", "roi_head.bbox_head.shared_fcs."),
    (r"^head\.roi\.class_logits\.", "roi_head.bbox_head.fc_cls."),
    (r"^head\.roi\.box_deltas\.", "roi_head.bbox_head.fc_reg."),
    # DINO
    (r"^neck\.(convs\.\d)\.norm\.", r"neck.\1.gn."),
    (r"^neck\.extra\.conv\.", "neck.extra_convs.0.conv."),
    (r"^neck\.extra\.norm\.", "neck.extra_convs.0.gn."),
    (r"^head\.class_layers\.", "bbox_head.cls_branches."),
    (r"^head\.box_layers\.", "bbox_head.reg_branches."),
    (r"^head\.label_embedding\.", "dn_query_generator.label_embedding."),
    (r"^head\.memory_(fc|norm)\.", r"memory_trans_\1."),
    (r"^head\.(level_embed$|query_embedding\.|encoder\.|decoder\.)", r"\1"),
    (r"^decoder\.position_layers\.", "decoder.ref_point_head.layers."),
    (r"^((?:en|de)coder\.layers\.\d\.ffn)\.expand\.", r"\1.layers.0.0."),
    (r"^((?:en|de)coder\.layers\.\d\.ffn)\.reduce\.", r"\1.layers.1."),
    (r"^(decoder\.layers\.\d\.self_attn)\.(in_proj_|out_proj\.)", r"\1.attn.\2"),
)
"""Our names -> the authors', applied one after the other; ResNet has the same names in both."""

_ALWAYS: Renames = (
    (r"\.num_batches_tracked$", "counters of BatchNorm, which a fixed momentum does not need"),
    (r"^data_preprocessor\.", "mean and std, which config.json holds"),
    (r"\.relative_position_index$", "an index that the window's side makes"),
)
LEFT_OUT: Mapping[str, Renames] = {
    "detector": _ALWAYS,
    "backbone": (
        (r"^(backbone\.mask_token$|neck\.decoder\.)", "token and decoder of hidden patches, SimMIM's part of stage 1"),
        (r"^head\.fc\.", "the classifier of data set names, the auxiliary task of stage 1"),
        (r"^(neck|bbox_head|rpn_head|roi_head)\.", "the rest of the detector that the backbone is taken from"),
        (
            r"^(encoder|decoder|memory_trans_(fc|norm)|query_embedding|dn_query_generator)\.|^level_embed$",
            "the rest of the detector that the backbone is taken from",
        ),
        *_ALWAYS,
    ),
}
"""What is left out of a checkpoint, by task: pattern of the authors' names, and why; the first that matches counts."""


@dataclass(frozen=True)
class DetectorLayout:
    """What is particular to the checkpoints of a family of detectors.

    Attributes:
        marks: beginnings of names that only this family has.
        class_layer: the entry with a row for each class.
        background: rows of it that are no classes.
        preprocess: the authors' test pipeline.
        postprocess: the authors' thresholds.
    """

    marks: tuple[str, ...]
    class_layer: str
    background: int = 0
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess = field(default_factory=Postprocess)


DETECTORS: Mapping[str, DetectorLayout] = MappingProxyType(
    {
        "yolov8": DetectorLayout(
            marks=("bbox_head.head_module.",),
            class_layer="bbox_head.head_module.cls_preds.0.2.weight",
            preprocess=Preprocess(size=(640, 640), resize="opencv", rounding="floor"),
        ),
        "faster_rcnn": DetectorLayout(
            marks=("roi_head.",),
            class_layer="roi_head.bbox_head.fc_cls.weight",
            background=1,
            preprocess=Preprocess(
                size=640,
                resize="opencv_linear",
                pad_value=102,
                pad_position="top_left",
                pad_after_normalize=True,
                mean=(101.57, 101.57, 101.57),
                std=(61.2, 61.2, 61.2),
            ),
            postprocess=Postprocess(conf=0.05, iou=0.5, max_det=100),
        ),
        "dino": DetectorLayout(
            marks=("encoder.",),
            class_layer="bbox_head.cls_branches.0.weight",
            preprocess=Preprocess(
                size=640,
                stride=1,
                resize="opencv_linear",
                pad_value=102,
                pad_position="top_left",
                pad_after_normalize=True,
                mean=(101.57, 101.57, 101.57),
                std=(61.2, 61.2, 61.2),
            ),
            # Each object is answered once, so nothing is suppressed; a caller may ask for it.
            postprocess=Postprocess(iou=1.0, max_det=300),
        ),
    }
)
"""The families of the authors' detectors; the name of an architecture begins with its family's."""

STAGE1_PREPROCESS = Preprocess(
    size=(224, 224), fit="stretch", mean=(110.2955, 113.433, 109.914), std=(32.028, 30.614, 30.27)
)
"""Input size, mean and std of the stage-1 backbones."""


def layout_of(architecture: str) -> DetectorLayout:
    """The layout of a detector's family, by the name of its architecture."""
    return next(layout for family, layout in DETECTORS.items() if architecture.startswith(f"{family}_"))
