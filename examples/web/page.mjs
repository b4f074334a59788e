// The page: a model, an image, boxes on a canvas. ?model=ADDRESS loads another file than model.onnx beside the page.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { detect, readConfig } from "./agssp.mjs";

ort.env.wasm.numThreads = 1; // more threads need headers that a plain static server does not send
ort.env.logLevel = "error"; // or ONNX Runtime mentions the thresholds, which are inputs with a default

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const drop = element("drop");
let model = null; // { config, session }
let shown = null; // { bitmap, pixels, found, ms }

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").className = bad ? "bad" : "";
}

/** Runs a task; what goes wrong is said on the page. */
async function attempt(task) {
  document.body.dataset.state = "busy";
  try {
    await task();
    document.body.dataset.state = "done";
  } catch (error) {
    say(error.message, true);
    document.body.dataset.state = "failed";
  }
}

async function openModel(bytes) {
  const config = readConfig(bytes);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes);
  } catch (error) {
    throw new Error(`The model cannot be opened: ${error.message}`);
  }
  model = { config, session };
  element("conf").value = 0;
  describe();
  if (shown) await run();
}

function describe() {
  const { config } = model;
  const note = config.preprocess.resize === "pillow" ? "" : " Made for another way of resizing: boxes may be a pixel off.";
  const seconds = shown?.ms ? ` Last image: ${Math.round(shown.ms)} ms.` : "";
  say(`${config.name}, ${config.class_names.length} class${config.class_names.length > 1 ? "es" : ""}.${seconds}${note}`);
}

async function openImage(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${blob.name || "This file"} is no image that this browser can read. Take a PNG, JPEG, WebP or BMP.`);
  }
  const sheet = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  sheet.drawImage(bitmap, 0, 0);
  shown = { bitmap, pixels: sheet.getImageData(0, 0, bitmap.width, bitmap.height), found: [] };
  drop.classList.remove("empty");
  if (!model) throw new Error("There is no model yet: open one, or put model.onnx beside this page.");
  await run();
}

async function run() {
  const started = performance.now();
  shown.found = await detect(ort, model.session, model.config, shown.pixels);
  shown.ms = performance.now() - started;
  describe();
  show();
}

const color = (name) => `hsl(${(model.config.class_names.indexOf(name) * 137.5 + 210) % 360} 85% 55%)`;

/** Draws the image, its boxes and the table, leaving out what is below the chosen score. */
function show() {
  const conf = Number(element("conf").value);
  element("conf-value").textContent = conf.toFixed(2);
  if (!shown || !model) return;
  const { bitmap } = shown;
  const found = shown.found.filter((one) => one.score > conf);
  // As large as there is room for, one canvas pixel a screen pixel, so that lines and letters are sharp.
  const dense = window.devicePixelRatio;
  const room = [drop.clientWidth - 34, 0.72 * innerHeight];
  const zoom = Math.min(6, room[0] / bitmap.width, room[1] / bitmap.height) * dense;
  canvas.width = Math.max(1, Math.round(bitmap.width * zoom));
  canvas.height = Math.max(1, Math.round(bitmap.height * zoom));
  canvas.style.width = `${canvas.width / dense}px`;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  pen.lineWidth = 2 * dense;
  pen.font = `600 ${12 * dense}px system-ui, "DejaVu Sans", sans-serif`;
  pen.textBaseline = "middle";
  for (const { name, score, box } of [...found].reverse()) {
    const [x1, y1, x2, y2] = box.map((side) => side * zoom);
    const label = `${name} ${score.toFixed(2)}`;
    const [wide, high] = [pen.measureText(label).width + 10 * dense, 18 * dense];
    pen.strokeStyle = pen.fillStyle = color(name);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const left = Math.max(0, Math.min(x1 - dense, canvas.width - wide));
    const above = y1 >= high ? y1 - high : y1;
    pen.fillRect(left, above, wide, high);
    pen.fillStyle = "#10161d";
    pen.fillText(label, left + 5 * dense, above + high / 2 + dense);
  }
  element("copy").hidden = !found.length;
  element("found").tBodies[0].replaceChildren(
    ...found.map(({ name, score, box }) => {
      const row = document.createElement("tr");
      row.dataset.line = [name, score.toFixed(4), ...box.map((side) => side.toFixed(2))].join("\t");
      row.innerHTML = `<td><i></i><span></span></td><td>${score.toFixed(2)}</td><td></td>`;
      row.querySelector("i").style.background = color(name);
      row.querySelector("span").textContent = name; // a name is text, whatever is in it
      row.lastChild.textContent = `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])}`;
      return row;
    }),
  );
  if (!found.length) {
    const row = document.createElement("tr");
    row.innerHTML = "<td colspan=3>No defect found.</td>";
    element("found").tBodies[0].append(row);
  }
}

async function openFile(file) {
  if (!file) return;
  await attempt(async () => {
    say(`Reading ${file.name}…`);
    if (/\.onnx$/i.test(file.name)) await openModel(new Uint8Array(await file.arrayBuffer()));
    else await openImage(file);
  });
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  openFile(event.dataTransfer.files[0]);
});
drop.addEventListener("click", () => drop.classList.contains("empty") && element("image-file").click());
for (const id of ["image-file", "model-file"]) {
  element(id).addEventListener("change", (event) => {
    openFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
element("conf").addEventListener("input", show);
addEventListener("resize", show);
element("copy").addEventListener("click", () =>
  navigator.clipboard.writeText([...document.querySelectorAll("tr[data-line]")].map((row) => row.dataset.line).join("\n")),
);

attempt(async () => {
  element("conf-value").textContent = "0.00";
  const address = new URLSearchParams(location.search).get("model") ?? "model.onnx";
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) {
    throw new Error(`There is no ${address} beside this page. Copy a model.onnx of agssp-zoo there, or open one.`);
  }
  await openModel(new Uint8Array(await answer.arrayBuffer()));
});
