"""The sections of the report, each an HTML fragment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from . import plots, words
from .about import About
from .errors import KINDS
from .gallery import LoadImage, Look, card, choose
from .inputs import GroundTruthLike, PredictionLike
from .metrics import Metrics
from .words import number, percent, threshold


def result(metrics: Metrics, about: About) -> str:
    """The figures at the top, and what to know before trusting them."""
    interval = ""
    if number(metrics.map50_low) != number(metrics.map50_high):  # a few images, all perfect, tell nothing about others
        interval = (
            f" With this many images map50 is uncertain: its 95 % interval is {number(metrics.map50_low)} to "
            f"{number(metrics.map50_high)}."
        )
    tiles = [
        ("map50", number(metrics.map50), True),
        ("map50_95", number(metrics.map50_95), True),
        ("map75", number(metrics.map75), False),
        ("map of small boxes", number(metrics.map_small), False),
        ("map of medium boxes", number(metrics.map_medium), False),
        ("map of large boxes", number(metrics.map_large), False),
        ("best mean F1", number(metrics.best_f1.f1), False),
        ("precision there", number(metrics.best_f1.precision), False),
        ("recall there", number(metrics.best_f1.recall), False),
        ("threshold there", threshold(metrics.best_f1.threshold), False),
    ]
    if about.ms_per_image is not None:
        tiles.append(("ms an image", number(about.ms_per_image, 1), False))
    boxes = "".join(
        f'<div class="tile{" main" if main else ""}"><b>{value}</b><span>{label}</span></div>'
        for label, value, main in tiles
    )
    known = [*filter(None, [words.left_out(about.unreadable)]), *words.caveats(metrics)]
    notes = "".join(f'<div class="note-box">{escape(note)}</div>' for note in known)
    return f'<p>{escape(words.summary(metrics) + interval)}</p><div class="tiles">{boxes}</div>{notes}'


def classes(metrics: Metrics, look: Look) -> str:
    """The table of classes."""
    rows = []
    for label, entry in enumerate(metrics.classes):
        point = entry.best_f1
        bar = f'<span class="bar"><i style="width:{100 * entry.ap50:.0f}%"></i></span>' if entry.boxes else ""
        rows.append(
            f"<tr><td>{_swatch(look, label)}</td><td>{entry.images}</td><td>{entry.boxes}</td>"
            f"<td>{number(entry.ap50)}{bar}</td><td>{number(entry.ap75)}</td><td>{number(entry.ap50_95)}</td>"
            f"<td>{threshold(point.threshold)}</td><td>{number(point.precision)}</td><td>{number(point.recall)}</td>"
            f"<td>{number(point.f1)}</td></tr>"
        )
    if len(metrics.classes) > 1:
        bar = f'<span class="bar"><i style="width:{100 * metrics.map50:.0f}%"></i></span>' if metrics.boxes else ""
        point = metrics.best_f1
        rows.append(
            f'<tr class="total"><td>all, one threshold</td><td>{metrics.images}</td><td>{metrics.boxes}</td>'
            f"<td>{number(metrics.map50)}{bar}</td><td>{number(metrics.map75)}</td><td>{number(metrics.map50_95)}</td>"
            f"<td>{threshold(point.threshold)}</td><td>{number(point.precision)}</td><td>{number(point.recall)}</td>"
            f"<td>{number(point.f1)}</td></tr>"
        )
    return (
        "<p>Average precision (AP) by class, and the score threshold at which the class has its best F1. The colours "
        "are those of the drawn detections.</p>"
        '<div class="scroll"><table><tr><th>class</th><th>images</th><th>boxes</th><th>AP50</th><th>AP75</th>'
        "<th>AP50_95</th><th>best threshold</th><th>precision</th><th>recall</th><th>F1</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def thresholds(metrics: Metrics, look: Look) -> str:
    """The advised threshold of every class: table, sentences and the code to use them."""
    wanted = metrics.classes[0].advice.miss_rate
    rows, sentences = [], []
    chosen: dict[str, tuple[float, str]] = {}
    for label, entry in enumerate(metrics.classes):
        given = entry.advice
        sentences.append(f"<li>{_swatch(look, label, bold=True)}: {escape(words.advice(entry, metrics))}</li>")
        if given.threshold is None:
            continue
        chosen[entry.name] = (given.threshold, "")
        if not given.reachable and entry.best_f1.threshold is not None:
            chosen[entry.name] = (entry.best_f1.threshold, "  # best F1, as the miss rate is out of reach")
        mark = "" if given.reachable else ' class="warn"'
        missed = f"{given.missed} of {given.boxes}" if given.missed is not None else "–"
        interval = f"{percent(given.missed_low)} – {percent(given.missed_high)}"
        rows.append(
            f"<tr><td>{_swatch(look, label)}</td><td>{threshold(given.threshold)}</td><td{mark}>{missed}</td>"
            f"<td{mark}>{percent((given.missed or 0) / given.boxes)}</td><td>{interval}</td>"
            f"<td>{given.false_alarms_per_image:.3g}</td><td>{given.unprovoked_per_image:.3g}</td>"
            + (f"<td>{given.clean_images_flagged} of {metrics.clean_images}</td>" if metrics.clean_images else "")
            + "</tr>"
        )
    if not rows:
        other = (
            " For a number of false alarms an image <code>agssp-zoo val ... --false-alarms</code> names thresholds."
            if metrics.detections
            else ""
        )
        return f'<p>No threshold can be advised for a miss rate.{other}</p><ul class="advice">{"".join(sentences)}</ul>'
    total = sum(entry.advice.false_alarms_per_image for entry in metrics.classes)
    wide = " columns" if len(sentences) > 8 else ""
    remedy = ""
    if any(not entry.advice.reachable for entry in metrics.classes if entry.boxes):
        remedy = (
            "<p>Where the miss rate is out of reach, no threshold helps: the detector needs more or better labelled "
            "training images of that class, a larger input size or a larger model. Look at its missed boxes below "
            "first; boxes that are found but drawn differently (misplaced) also count as missed.</p>"
        )
    clean = "<th>clean images stopped</th>" if metrics.clean_images else ""
    table = (
        '<div class="scroll"><table><tr><th>class</th><th>threshold</th><th>boxes missed</th><th>miss rate</th>'
        "<th>95 % interval</th><th>false alarms<br>an image</th><th>of these where<br>no defect is labelled</th>"
        f"{clean}</tr>{''.join(rows)}</table></div>"
    )
    return (
        f"<p>For each class the highest score threshold that misses at most {percent(wanted)} of its labelled boxes "
        "(another rate: <code>--miss-rate</code>). A box counts as found when a detection of its class overlaps it "
        f"with an IoU of at least {metrics.iou:g}; every other detection is a false alarm, also a second one on the "
        f"same defect or one that is placed badly. All classes together: {total:.3g} false alarms an image.</p>{table}"
        f'<ul class="advice{wide}">{"".join(sentences)}</ul>{remedy}'
        "<p>To use these thresholds, write a file of them with <code>agssp-zoo val ... --miss-rate</code> (or a "
        "number of <code>--false-alarms</code> an image) and put it into the model with <code>agssp-zoo thresholds "
        f"MODEL thresholds.json</code>; or in Python:</p><pre>{escape(_snippet(chosen))}</pre>"
        '<p class="soft">These figures hold for images like those of this split. Where defects are rarer in production '
        "than here, the same threshold gives fewer false alarms beside defects and the same number on sound metal.</p>"
    )


def _snippet(chosen: dict[str, tuple[float, str]]) -> str:
    lines = "\n".join(f"    {name!r}: {value!r},{note}" for name, (value, note) in chosen.items())
    lowest = min(value for value, _ in chosen.values())
    return (
        f"thresholds = {{\n{lines}\n}}\n"
        "limits = numpy.array([thresholds.get(name, 1.0) for name in detector.config.class_names])\n"
        f"for found in detector.predict(images, conf={lowest!r}):\n"
        "    found = found[found.scores > limits[found.labels]]"
    )


def curves(metrics: Metrics, look: Look) -> str:
    """The four plots."""
    if not metrics.detections:
        return ""
    if not metrics.boxes:
        return (
            "<p>Without labelled boxes every detection is a false alarm.</p>"
            f'<div class="plots"><figure><h3>False alarms over the score threshold</h3>'
            f"{plots.false_alarms_over_threshold(metrics, look.colors)}</figure></div>"
        )
    figures = [
        (
            "Precision over recall",
            plots.precision_recall(metrics, look.colors),
            "At IoU 0.50, as COCO draws it. The figure beside a class is its AP50: the mean height of its line.",
        ),
        (
            "Misses over false alarms",
            plots.misses_over_false_alarms(metrics, look.colors),
            "Each line runs over all thresholds, high ones at the left. A dot marks the advised threshold.",
        ),
        (
            "F1 over the score threshold",
            plots.f1_over_threshold(metrics, look.colors),
            "F1 is high only where precision and recall both are. The figure beside a class is its best F1.",
        ),
        (
            "Precision and recall over the score threshold",
            plots.precision_and_recall_over_threshold(metrics),
            "All classes together. A higher threshold gives fewer false alarms and more misses.",
        ),
    ]
    cells = "".join(f"<figure><h3>{name}</h3>{svg}<p class=soft>{text}</p></figure>" for name, svg, text in figures)
    return f'<div class="plots">{cells}</div>'


def errors(metrics: Metrics, look: Look) -> str:
    """What goes wrong: kinds of errors and the confusion matrix."""
    if metrics.best_f1.threshold is None:
        return ""
    at = threshold(metrics.best_f1.threshold)
    rows = []
    for label, entry in enumerate(metrics.classes):
        rows.append(_error_row(_swatch(look, label), entry.at_common.found, entry.boxes, entry.errors))
    if len(metrics.classes) > 1:
        sums = {kind: sum(c.errors[kind] for c in metrics.classes) for kind in KINDS}
        rows.append(_error_row("all", metrics.best_f1.found, metrics.boxes, sums, "total"))
    return (
        f"<p>At the common threshold {at}. False alarms are counted for the class they claim: <b>wrong class</b> lies "
        f"on a box of another class (IoU ≥ {metrics.iou:g}), <b>misplaced</b> overlaps a box too little, <b>second</b> "
        "lies on a box already found, <b>nothing there</b> touches no labelled box (IoU below 0.1).</p>"
        '<div class="scroll"><table><tr><th>class</th><th>found</th><th>missed</th><th>wrong class</th>'
        f"<th>misplaced</th><th>second</th><th>nothing there</th></tr>{''.join(rows)}</table></div>"
        "<h3>Confusion</h3><p>Rows: what was labelled. Columns: what was detected there. The diagonal is right; "
        "darker means a larger share of the row. The last row holds detections that no box was left for, the last "
        f"column boxes without a detection.</p>{plots.confusion(metrics)}"
    )


def _error_row(name: str, found: int, boxes: int, errors: Mapping[str, int], style: str = "") -> str:
    cells = "".join(f"<td>{errors[kind]}</td>" for kind in KINDS)
    return f'<tr class="{style}"><td>{name}</td><td>{found} of {boxes}</td>{cells}</tr>'


def gallery(
    metrics: Metrics,
    ground_truth: Sequence[GroundTruthLike],
    predictions: Sequence[PredictionLike],
    load_image: LoadImage,
    names: Sequence[str],
    look: Look,
    count: int,
) -> str:
    """The worst and the best images; nothing where no box is labelled, for then no threshold says what is drawn."""
    if not metrics.boxes:
        return ""
    best, worst = choose(metrics.per_image, ground_truth, len(metrics.classes), count)
    at = threshold(metrics.best_f1.threshold)
    intro = (
        f"Detections above the common threshold {at}. Dashed boxes are errors: labels that were <b>missed</b> at the "
        "left, <b>false</b> alarms at the right."
    )
    if metrics.best_f1.threshold is None:
        intro = "There is no threshold to draw detections for; the labels are drawn."
    parts = [f"<p>{intro}</p>"]
    no_worst = "No other image has an error." if any(r.errors for r in best) else "No image has an error."
    for heading, chosen, empty in (
        ("Worst images", worst, no_worst),
        ("Best images", best, "No image has a box that was found."),
    ):
        cards = "".join(
            card(r, load_image(r.index), ground_truth[r.index], predictions[r.index], look, names[r.index])
            for r in chosen
        )
        parts.append(f"<h3>{heading}</h3>" + (f'<div class="cards">{cards}</div>' if cards else f"<p>{empty}</p>"))
    return "".join(parts)


def made(metrics: Metrics, about: About) -> str:
    """Everything needed to repeat the evaluation, and how the figures are defined."""
    facts = [
        ("command", f"<code>{escape(about.command)}</code>" if about.command else ""),
        ("date", escape(about.created)),
        ("model", escape(f"{about.model} ({about.model_path})" if about.model_path else about.model)),
        ("weights", escape(f"{about.model_file}, sha256 {about.model_sha256}" if about.model_sha256 else "")),
        ("engine", escape(f"{about.engine} on {about.device}" if about.device else about.engine)),
        ("data", escape(f"{about.data}, split {about.split}" if about.data else "")),
        ("data fingerprint", escape(about.data_fingerprint)),
        ("settings", escape(", ".join(f"{key} {value}" for key, value in about.settings.items()))),
        (
            "scoring",
            escape(
                f"scores above {metrics.conf:g}; for average precision at most {metrics.max_det} detections of a class "
                "in an image"
            ),
        ),
        ("time an image", escape(", ".join(f"{name} {ms:.1f} ms" for name, ms in about.ms_per_stage.items()))),
        ("machine", escape(", ".join(f"{key} {value}" for key, value in about.machine.items()))),
        ("versions", escape(", ".join(f"{name} {version}" for name, version in about.versions.items()))),
    ]
    rows = "".join(f'<tr><td>{name}</td><td class="path">{value}</td></tr>' for name, value in facts if value)
    return (
        f"<table>{rows}</table>"
        "<p class=soft>map50, map50_95, map75 and the sizes are COCO's (faster-coco-eval): average precision over 101 "
        "recall points, means over the classes with labelled boxes, sizes (small: below 32 x 32 pixels, large: from "
        "96 x 96) by the box's area in pixels of the original image. Crowd boxes are COCO's: they cannot "
        "be missed, and detections on them do not count. A threshold keeps detections with "
        "a score above it. Intervals of miss rates are Wilson's; the interval of map50 comes from resampling the "
        "images. All figures are in metrics.json.</p>"
    )


def _swatch(look: Look, label: int, *, bold: bool = False) -> str:
    name = escape(look.names[label])
    name = f"<b>{name}</b>" if bold else name
    return f'<span class="swatch" style="background:{look.colors[label]}"></span>{name}'
