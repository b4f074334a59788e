// Runs an ONNX file of `agssp-zoo export` from JavaScript: in the browser (onnxruntime-web) and in Node (onnxruntime-node).
//
//     const config = readConfig(bytes)                       // bytes: Uint8Array of the .onnx file
//     const found = await detect(ort, session, config, { width, height, data })       // data: RGBA, row by row
//
// docs/onnx-contract.md describes the file. Nothing here needs the DOM or Node.

/** Our config.json, from the metadata of the file; throws an Error that says what to do. */
export function readConfig(bytes) {
  const metadata = {};
  try {
    for (const [number, entry] of fields(bytes)) {
      if (number !== 14) continue; // ModelProto.metadata_props
      const pair = {};
      for (const [key, text] of fields(entry)) pair[key] = new TextDecoder().decode(text);
      metadata[pair[1]] = pair[2];
    }
  } catch {
    throw new Error("This is no ONNX file, or it is damaged.");
  }
  if (!metadata.config || !metadata.contract_version) {
    throw new Error("This ONNX file is not one of agssp-zoo; make one with `agssp-zoo export`.");
  }
  if (Number(metadata.contract_version) !== 1) {
    throw new Error(`This file follows contract ${metadata.contract_version}; this program knows contract 1.`);
  }
  if (metadata.outputs !== "detections") {
    throw new Error(`This file answers ${metadata.outputs}, not detections; export a detector without --raw.`);
  }
  const config = JSON.parse(metadata.config);
  if (config.preprocess.pad_after_normalize) {
    throw new Error(`${config.name} needs the input "sizes", which JavaScript's ONNX Runtime cannot give.`);
  }
  return config;
}

/** The fields of a protobuf message that hold bytes: [number, Uint8Array]. */
function* fields(bytes) {
  let place = 0;
  const number = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      if (place >= bytes.length) throw new Error("ends early");
      const byte = bytes[place++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (place < bytes.length) {
    const tag = number();
    const kind = tag % 8;
    if (kind === 0) number();
    else if (kind === 1) place += 8;
    else if (kind === 5) place += 4;
    else if (kind === 2) {
      const length = number();
      if (place + length > bytes.length) throw new Error("ends early");
      yield [Math.floor(tag / 8), bytes.subarray(place, place + length)];
      place += length;
    } else throw new Error("unknown kind");
  }
}

/** Detections of an image: [{ name, score, box: [x1, y1, x2, y2] }] in its own pixels, best first. */
export async function detect(ort, session, config, image) {
  const placement = place(image, config.preprocess);
  const canvas = draw(image, placement, config.preprocess);
  const input = new ort.Tensor("uint8", canvas, [1, placement.canvas[0], placement.canvas[1], 3]);
  const out = await session.run({ images: input }, ["boxes", "scores", "labels", "count"]);
  const [top, left] = placement.offset;
  const vertical = placement.resized[0] / image.height;
  const horizontal = placement.resized[1] / image.width;
  const clip = (value, limit) => Math.min(Math.max(value, 0), limit);
  const found = [];
  for (let i = 0; i < Number(out.count.data[0]); i++) {
    const [x1, y1, x2, y2] = out.boxes.data.subarray(4 * i, 4 * i + 4);
    found.push({
      name: config.class_names[Number(out.labels.data[i])],
      score: out.scores.data[i],
      box: [
        clip((x1 - left) / horizontal, image.width),
        clip((y1 - top) / vertical, image.height),
        clip((x2 - left) / horizontal, image.width),
        clip((y2 - top) / vertical, image.height),
      ],
    });
  }
  return found;
}

/** Where an image lies on the network's canvas; all pairs are [vertical, horizontal]. */
function place({ width, height }, { size, stride, fit, rounding, upscale, pad_position }) {
  const up = (side) => Math.ceil(side / stride) * stride;
  const bound = Array.isArray(size) ? size : [size, size];
  if (fit === "stretch") return { resized: bound.map(up), canvas: bound.map(up), offset: [0, 0] };
  let ratio = Math.min(bound[0] / height, bound[1] / width);
  if (!upscale) ratio = Math.min(ratio, 1);
  const half = rounding === "nearest" ? 0.5 : 0;
  const resized = [height, width].map((side) => Math.max(1, Math.floor(side * ratio + half)));
  const canvas = Array.isArray(size) ? size : resized.map(up);
  const centre = (i) => Math.floor((canvas[i] - resized[i]) / 2);
  return { resized, canvas, offset: pad_position === "top_left" ? [0, 0] : [centre(0), centre(1)] };
}

/** The canvas: RGB, the image resized, padding around it. */
function draw(image, { resized, canvas, offset }, { pad_value }) {
  const small = resize(image, resized[1], resized[0]);
  const out = new Uint8Array(canvas[0] * canvas[1] * 3).fill(pad_value);
  for (let y = 0; y < resized[0]; y++) {
    for (let x = 0; x < resized[1]; x++) {
      const from = 4 * (y * resized[1] + x);
      out.set(small.subarray(from, from + 3), 3 * ((y + offset[0]) * canvas[1] + x + offset[1]));
    }
  }
  return out;
}

/** Pillow's antialiased bilinear filter: whole factors by plain means, the rest by triangles as wide as the scale. */
function resize(image, width, height) {
  if (width === image.width && height === image.height) return image.data;
  const factor = [Math.floor(image.width / width) || 1, Math.floor(image.height / height) || 1];
  const small = reduce(image, ...factor);
  const across = (one) => resizeColumns(one, image.width / factor[0], width);
  const down = (one) => transposed(resizeColumns(transposed(one), image.height / factor[1], height));
  // Pillow's order, where much less height than width is left; it moves single pixels by one gray level.
  const lost = small.height - height;
  return (lost > 0 && lost > 2 * (small.width - width) ? across(down(small)) : down(across(small))).data;
}

/** The filter in one direction. `from` is the width that the image stands for, which may end within its last pixel. */
function resizeColumns({ width, height, data }, from, to) {
  const out = new Uint8ClampedArray(4 * to * height);
  const scale = from / to;
  const reach = Math.max(scale, 1);
  for (let x = 0; x < to; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(width, Math.floor(centre + reach + 0.5));
    const shares = [];
    for (let p = first; p < end; p++) shares.push(Math.max(0, 1 - Math.abs((p - centre + 0.5) / reach)));
    const total = shares.reduce((a, b) => a + b, 0);
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 4; c++) {
        let sum = 0.5;
        for (let i = 0; i < shares.length; i++) sum += (shares[i] / total) * data[4 * (y * width + first + i) + c];
        out[4 * (y * to + x) + c] = Math.floor(sum);
      }
    }
  }
  return { width: to, height, data: out };
}

function transposed({ width, height, data }) {
  const out = new Uint8ClampedArray(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 4; c++) out[4 * (x * height + y) + c] = data[4 * (y * width + x) + c];
    }
  }
  return { width: height, height: width, data: out };
}

/** Means of blocks of fx times fy pixels; those at the end may be smaller. */
function reduce({ width, height, data }, fx, fy) {
  if (fx === 1 && fy === 1) return { width, height, data };
  const out = { width: Math.ceil(width / fx), height: Math.ceil(height / fy) };
  out.data = new Uint8ClampedArray(4 * out.width * out.height);
  for (let y = 0; y < out.height; y++) {
    for (let x = 0; x < out.width; x++) {
      const [right, bottom] = [Math.min((x + 1) * fx, width), Math.min((y + 1) * fy, height)];
      const count = (right - x * fx) * (bottom - y * fy);
      const share = Math.floor(2 ** 24 / count); // Pillow multiplies with a rounded share, it does not divide
      for (let c = 0; c < 4; c++) {
        let sum = Math.floor(count / 2);
        for (let v = y * fy; v < bottom; v++) for (let u = x * fx; u < right; u++) sum += data[4 * (v * width + u) + c];
        out.data[4 * (y * out.width + x) + c] = Math.floor((sum * share) / 2 ** 24);
      }
    }
  }
  return out;
}
