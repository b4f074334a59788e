// Detects defects in a PNG: node detect.mjs MODEL.onnx IMAGE.png [CONF]
//
// Prints a line a detection: name, score and box (x1 y1 x2 y2, pixels of the image), with tabs between. The thresholds
// are those in the file, one a class if it has them; CONF raises them.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";
import { detect, readConfig } from "../web/agssp.mjs";

/** { width, height, data: RGBA }; of 16 bits the high byte, as Python takes it, where pngjs would round. */
function readPng(bytes) {
  const deep = bytes[24] === 16; // IHDR comes first, and holds the depth
  const image = PNG.sync.read(bytes, { skipRescale: deep });
  return deep ? { ...image, data: Uint8Array.from(image.data, (value) => value >> 8) } : image;
}

async function main([modelPath, imagePath, conf = "0"]) {
  if (!imagePath || !(conf >= 0 && conf <= 1)) throw new Error("usage: node detect.mjs MODEL.onnx IMAGE.png [CONF]");
  const bytes = readFileSync(modelPath);
  const config = readConfig(bytes);
  if (config.preprocess.resize !== "pillow") {
    console.error(`Note: ${config.name} was made for ${config.preprocess.resize}'s resizing; boxes may be a pixel off.`);
  }
  // Level 3: ONNX Runtime would mention the thresholds, which are inputs with a default.
  const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 });
  let image;
  try {
    image = readPng(readFileSync(imagePath));
  } catch (error) {
    throw new Error(`${imagePath} cannot be read as PNG: ${error.message}`);
  }
  for (const { name, score, box } of await detect(ort, session, config, image)) {
    if (score > conf) console.log([name, score.toFixed(4), ...box.map((side) => side.toFixed(2))].join("\t"));
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
