// Detects defects in a PNG with an ONNX file of `agssp-zoo export`:
//
//     detect MODEL.onnx IMAGE.png [CONF]
//
// Prints a line a detection: name, score and box (x1 y1 x2 y2, pixels of the image), with tabs between. Everything else,
// names, sizes and thresholds, stands in the file; CONF is one threshold for all classes instead of the file's own.
// docs/onnx-contract.md describes the file.
#include <onnxruntime_cxx_api.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Json = nlohmann::json;

struct Image {  // RGB, row by row
    int width = 0, height = 0;
    std::vector<uint8_t> pixels;
};

struct PngReader {
    std::FILE* file = nullptr;
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::string problem;

    ~PngReader() {
        png_destroy_read_struct(&png, &info, nullptr);
        if (file) std::fclose(file);
    }
};

[[noreturn]] void note_problem(png_structp png, png_const_charp message) {
    static_cast<PngReader*>(png_get_error_ptr(png))->problem = message;
    png_longjmp(png, 1);
}

void pass_over(png_structp, png_const_charp) {}

bool decode(PngReader& reader) {  // nothing here may have a destructor: libpng jumps out of it
    if (setjmp(png_jmpbuf(reader.png))) return false;
    png_init_io(reader.png, reader.file);
    const int to_8_bits = PNG_TRANSFORM_STRIP_16 | PNG_TRANSFORM_EXPAND;
    const int to_rgb = PNG_TRANSFORM_STRIP_ALPHA | PNG_TRANSFORM_GRAY_TO_RGB;
    png_read_png(reader.png, reader.info, to_8_bits | to_rgb, nullptr);
    return true;
}

// The values that are stored, as Python takes them: of 16 bits the high byte, colours without their alpha, no gamma.
// libpng's png_image would take 16 bits for linear light, and lay transparent pixels on black.
Image read_png(const std::string& path) {
    PngReader reader;
    reader.file = std::fopen(path.c_str(), "rb");
    if (!reader.file) throw std::runtime_error(path + ": " + std::strerror(errno));
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, note_problem, pass_over);
    reader.info = reader.png ? png_create_info_struct(reader.png) : nullptr;
    if (!reader.info) throw std::runtime_error(path + ": libpng cannot be started");
    if (!decode(reader)) throw std::runtime_error(path + ": " + reader.problem);
    const size_t row = png_get_rowbytes(reader.png, reader.info);
    Image image{static_cast<int>(png_get_image_width(reader.png, reader.info)),
                static_cast<int>(png_get_image_height(reader.png, reader.info)),
                {}};
    image.pixels.resize(row * image.height);
    png_bytepp rows = png_get_rows(reader.png, reader.info);
    for (int y = 0; y < image.height; y++) std::copy_n(rows[y], row, &image.pixels[row * y]);
    return image;
}

// Pillow's antialiased bilinear filter in one direction: triangles as wide as the scale. `from` is the length that the
// input stands for, which may end within its last pixel.
Image resize_columns(const Image& in, double from, int to) {
    Image out{to, in.height, std::vector<uint8_t>(size_t(3) * to * in.height)};
    const double scale = from / to, reach = std::max(scale, 1.0);
    for (int x = 0; x < to; x++) {
        const double centre = (x + 0.5) * scale;
        const int first = std::max(0, int(centre - reach + 0.5)), end = std::min(in.width, int(centre + reach + 0.5));
        std::vector<double> shares;
        double sum = 0;
        for (int p = first; p < end; p++) {
            shares.push_back(std::max(0.0, 1 - std::abs((p - centre + 0.5) / reach)));
            sum += shares.back();
        }
        for (int y = 0; y < in.height; y++)
            for (int c = 0; c < 3; c++) {
                double value = 0.5;
                for (int p = first; p < end; p++)
                    value += shares[p - first] / sum * in.pixels[3 * (size_t(y) * in.width + p) + c];
                out.pixels[3 * (size_t(y) * to + x) + c] = uint8_t(std::min(255.0, value));
            }
    }
    return out;
}

Image transposed(const Image& in) {
    Image out{in.height, in.width, std::vector<uint8_t>(in.pixels.size())};
    for (int y = 0; y < in.height; y++)
        for (int x = 0; x < in.width; x++)
            std::copy_n(&in.pixels[3 * (size_t(y) * in.width + x)], 3, &out.pixels[3 * (size_t(x) * in.height + y)]);
    return out;
}

// Means of blocks of fx times fy pixels; those at the end may be smaller.
Image reduce(const Image& in, int fx, int fy) {
    if (fx == 1 && fy == 1) return in;
    Image out{(in.width + fx - 1) / fx, (in.height + fy - 1) / fy, {}};
    for (int y = 0; y < out.height; y++)
        for (int x = 0; x < out.width; x++)
            for (int c = 0; c < 3; c++) {
                const int right = std::min((x + 1) * fx, in.width), bottom = std::min((y + 1) * fy, in.height);
                const uint64_t count = uint64_t(right - x * fx) * (bottom - y * fy);
                uint64_t sum = count / 2;
                for (int v = y * fy; v < bottom; v++)
                    for (int u = x * fx; u < right; u++) sum += in.pixels[3 * (size_t(v) * in.width + u) + c];
                out.pixels.push_back(uint8_t(sum * ((1 << 24) / count) >> 24));  // as Pillow rounds
            }
    return out;
}

Image resize(const Image& in, int width, int height) {
    if (width == in.width && height == in.height) return in;
    const int fx = std::max(1, in.width / width), fy = std::max(1, in.height / height);
    const auto across = [&](const Image& one) { return resize_columns(one, double(in.width) / fx, width); };
    const auto down = [&](const Image& one) {
        return transposed(resize_columns(transposed(one), double(in.height) / fy, height));
    };
    const Image small = reduce(in, fx, fy);
    // Pillow's order, where much less height than width is left; it moves single pixels by one gray level.
    const int lost = small.height - height;
    return lost > 0 && lost > 2 * (small.width - width) ? across(down(small)) : down(across(small));
}

struct Placement {  // where the image lies on the network's canvas, in pixels
    int width, height, canvas_width, canvas_height, left = 0, top = 0;
};

Placement place(const Image& image, const Json& settings) {
    const int stride = settings["stride"];
    const auto up = [stride](int side) { return (side + stride - 1) / stride * stride; };
    const Json& size = settings["size"];
    const int rows = size.is_array() ? size[0] : size, columns = size.is_array() ? size[1] : size;
    if (settings["fit"] == "stretch") return {up(columns), up(rows), up(columns), up(rows)};
    double ratio = std::min(double(rows) / image.height, double(columns) / image.width);
    if (!settings["upscale"]) ratio = std::min(ratio, 1.0);
    const double half = settings["rounding"] == "nearest" ? 0.5 : 0;
    const int width = std::max(1, int(image.width * ratio + half));
    const int height = std::max(1, int(image.height * ratio + half));
    Placement on{width, height, size.is_array() ? columns : up(width), size.is_array() ? rows : up(height)};
    if (settings["pad_position"] == "center") {
        on.left = (on.canvas_width - width) / 2;
        on.top = (on.canvas_height - height) / 2;
    }
    return on;
}

int run(const std::string& model, const std::string& path, const char* conf) {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);  // below, it would mention the thresholds, which are inputs with a default
    Ort::SessionOptions options;
    Ort::Session session(env, model.c_str(), options);
    Ort::AllocatorWithDefaultOptions allocator;
    const Ort::ModelMetadata metadata = session.GetModelMetadata();
    const auto text = [&](const char* key) {
        const auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
        return std::string(value ? value.get() : "");
    };
    if (text("contract_version") != "1" || text("outputs") != "detections")
        throw std::runtime_error(model + " is no detector of `agssp-zoo export` that this program knows.");
    const Json config = Json::parse(text("config"));
    const Json& settings = config["preprocess"];
    if (settings["resize"] != "pillow")
        std::cerr << "Note: the model was made for another way of resizing; boxes may be a pixel off.\n";

    const Image image = read_png(path);
    const Placement on = place(image, settings);
    const Image small = resize(image, on.width, on.height);
    std::vector<uint8_t> canvas(size_t(3) * on.canvas_width * on.canvas_height, uint8_t(settings["pad_value"]));
    for (int y = 0; y < on.height; y++)
        std::copy_n(&small.pixels[size_t(3) * y * on.width], 3 * on.width,
                    &canvas[3 * (size_t(y + on.top) * on.canvas_width + on.left)]);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<int64_t, 4> shape{1, on.canvas_height, on.canvas_width, 3};
    std::vector<const char*> names{"images"};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor(memory, canvas.data(), canvas.size(), shape.data(), shape.size()));
    char* rest = nullptr;
    float threshold = conf ? std::strtof(conf, &rest) : 0;
    if (conf && (*conf == 0 || *rest != 0 || !(threshold >= 0 && threshold <= 1)))
        throw std::runtime_error(std::string("CONF is ") + conf + "; give a score in 0-1.");
    const std::array<int64_t, 1> one{1};
    if (conf) {
        names.push_back("conf_threshold");
        inputs.push_back(Ort::Value::CreateTensor(memory, &threshold, 1, one.data(), one.size()));
    }
    const std::array<int64_t, 2> valid_shape{1, 2};
    std::array<int64_t, 2> valid{on.height, on.width};
    if (settings["pad_after_normalize"]) {  // Faster R-CNN and DINO: the rest of the canvas is padding
        names.push_back("sizes");
        inputs.push_back(Ort::Value::CreateTensor(memory, valid.data(), 2, valid_shape.data(), valid_shape.size()));
    }
    const std::array<const char*, 4> outputs{"boxes", "scores", "labels", "count"};
    const auto found = session.Run({}, names.data(), inputs.data(), inputs.size(), outputs.data(), outputs.size());

    const float* boxes = found[0].GetTensorData<float>();
    const float* scores = found[1].GetTensorData<float>();
    const int64_t* labels = found[2].GetTensorData<int64_t>();
    for (int64_t i = 0; i < found[3].GetTensorData<int64_t>()[0]; i++) {
        std::printf("%s\t%.4f", config["class_names"][labels[i]].get<std::string>().c_str(), scores[i]);
        for (int side = 0; side < 4; side++) {
            const bool across = side % 2 == 0;
            const double length = across ? image.width : image.height;
            const double scale = (across ? on.width : on.height) / length;
            const double value = (boxes[4 * i + side] - (across ? on.left : on.top)) / scale;
            std::printf("\t%.2f", std::clamp(value, 0.0, length));
        }
        std::printf("\n");
    }
    return 0;
}

int main(int argc, char** argv) {
    try {
        if (argc < 3 || argc > 4) throw std::runtime_error("usage: detect MODEL.onnx IMAGE.png [CONF]");
        return run(argv[1], argv[2], argc == 4 ? argv[3] : nullptr);
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
