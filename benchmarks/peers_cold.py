"""What a user writes for one prediction, in each tool; run in fresh processes."""

from __future__ import annotations

from pathlib import Path

OURS = """
import sys, agssp_zoo
agssp_zoo.load_detector(sys.argv[1], engine="onnx").predict(sys.argv[2])
"""
_ONE_THREAD = """
import onnxruntime  # it heeds no environment variable; a second thread on one core would spin
usual, options = onnxruntime.InferenceSession, onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession = lambda model, given=None, **rest: usual(model, options, **rest)
"""
ULTRALYTICS = f"""
import sys
if sys.argv[1].endswith(".onnx"):
    exec({_ONE_THREAD!r})
from ultralytics import YOLO
YOLO(sys.argv[1], task="detect").predict(sys.argv[2], verbose=False, device="cpu")
"""
TORCHVISION = """
import sys, torch
from torchvision.io import decode_image
from torchvision.models import detection
model = getattr(detection, sys.argv[1])(
    weights=None, weights_backbone=None, num_classes=7, min_size=640, max_size=640, box_score_thresh=0.25
).eval()
with torch.inference_mode():
    model([decode_image(sys.argv[2]).float() / 255])
"""
ANOMALIB = """
import sys, torch
from anomalib.models import EfficientAd
from torchvision.io import decode_image
model = EfficientAd(visualizer=False, evaluator=False).eval()
with torch.inference_mode():
    model(decode_image(sys.argv[1])[None].float() / 255)
"""


def image_file(folder: Path) -> Path:
    """A 640x640 JPEG."""
    path = folder / "square.jpg"
    if not path.is_file():
        from PIL import Image

        from agssp_zoo.training.synthetic import draw_sample

        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_sample(7, seed=0, size=(640, 640), style="neu").image).save(path, quality=92)
    return path
