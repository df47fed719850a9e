// Find objects in an image with the model of this folder, in OpenVINO. model.hpp holds what model.json documents.
//
//   g++ -std=c++17 -O2 detect.cpp -o detect -lopenvino                                     reads PPM (P6)
//   g++ -std=c++17 -O2 -DWITH_OPENCV detect.cpp -o detect -lopenvino $(pkg-config --cflags --libs opencv4)
//   ./detect IMAGE          run it in this folder
//
// Prints a line for each box: class, score, and x1, y1, x2, y2 in pixels of the image.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>
#ifdef WITH_OPENCV
#include <opencv2/imgcodecs.hpp>
#endif

#include "model.hpp"

struct Image {  // red, green, blue; row by row
    int height = 0, width = 0;
    std::vector<float> pixels;
    float& at(int y, int x, int c) { return pixels[(size_t(y) * width + x) * 3 + c]; }
};

struct Box {
    float x1, y1, x2, y2, score;
    int label;
};

[[noreturn]] static void stop(const std::string& why) {
    std::cerr << why << "\n";
    std::exit(1);
}

static Image read(const std::string& name) {
    Image image;
#ifdef WITH_OPENCV
    cv::Mat found = cv::imread(name, cv::IMREAD_COLOR);
    if (found.empty()) stop("cannot read " + name);
    image.height = found.rows, image.width = found.cols;
    for (int y = 0; y < found.rows; y++)
        for (int x = 0; x < found.cols; x++)
            for (int c : {2, 1, 0}) image.pixels.push_back(found.at<cv::Vec3b>(y, x)[c]);
#else
    std::ifstream file(name, std::ios::binary);
    std::string kind;
    int largest = 0;
    if (!(file >> kind >> image.width >> image.height >> largest) || kind != "P6" || largest != 255)
        stop(name + " is no PPM file (P6, 255); build with -DWITH_OPENCV for others");
    file.get();
    std::vector<unsigned char> bytes(size_t(image.width) * image.height * 3);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), std::streamsize(bytes.size()))) stop(name + " is truncated");
    image.pixels.assign(bytes.begin(), bytes.end());
#endif
    return image;
}

// What each of `to` places along an axis takes of `from` ones: the mean of what it covers, or the two nearest.
struct Share {
    int place;
    double weight;
};

static std::vector<std::vector<Share>> shares(int from, int to, bool area) {
    std::vector<std::vector<Share>> rows(to);
    const double factor = double(from) / to;
    for (int i = 0; i < to; i++) {
        if (area) {
            const double begin = i * factor, end = (i + 1) * factor;
            for (int j = int(begin); j < from && j < end; j++) {
                const double covered = std::min(end, j + 1.0) - std::max(begin, double(j));
                if (covered > 1e-9) rows[i].push_back({j, covered / factor});
            }
        } else {
            const double centre = std::clamp((i + 0.5) * factor - 0.5, 0.0, from - 1.0);
            const int low = int(centre);
            rows[i].push_back({low, 1 - (centre - low)});
            if (low + 1 < from) rows[i].push_back({low + 1, centre - low});
        }
    }
    return rows;
}

static Image resized(Image& image, int height, int width) {
    const bool area = model::AREA && width < image.width && height <= image.height;
    const auto down = shares(image.height, height, area), across = shares(image.width, width, area);
    Image result{height, width, std::vector<float>(size_t(height) * width * 3)};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++) {
                double sum = 0;
                for (const Share& row : down[y])
                    for (const Share& column : across[x])
                        sum += row.weight * column.weight * image.at(row.place, column.place, c);
                result.at(y, x, c) = float(std::nearbyint(sum));
            }
    return result;
}

static float overlap(const Box& a, const Box& b) {
    const float w = std::max(0.f, std::min(a.x2, b.x2) - std::max(a.x1, b.x1));
    const float h = std::max(0.f, std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
    const float both = w * h, all = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both;
    return all > 0 ? both / all : 0;
}

int main(int count, char** words) {
    if (count != 2) stop("give an image");
    Image image = read(words[1]);

    // the letterbox
    int room_h = model::HEIGHT - 2 * model::BORDER, room_w = model::WIDTH - 2 * model::BORDER;
    if (model::INNER_SIZE) room_h = std::min(room_h, model::INNER_SIZE), room_w = std::min(room_w, model::INNER_SIZE);
    double ratio = std::min(double(room_h) / image.height, double(room_w) / image.width);
    if (!model::UPSCALE) ratio = std::min(ratio, 1.0);
    int inner_h = std::max(1, int(image.height * ratio + 1e-6)), inner_w = std::max(1, int(image.width * ratio + 1e-6));
    if (model::STRETCH) inner_h = room_h, inner_w = room_w;
    const int top = model::CENTRED ? (model::HEIGHT - inner_h) / 2 : model::BORDER;
    const int left = model::CENTRED ? (model::WIDTH - inner_w) / 2 : model::BORDER;
    const bool fits = inner_h == image.height && inner_w == image.width;
    Image inner = fits ? image : resized(image, inner_h, inner_w);

    // the network
    ov::Core core;
    auto compiled = core.compile_model(model::MODEL, "CPU", {{"INFERENCE_PRECISION_HINT", "f32"}});
    auto request = compiled.create_infer_request();
    ov::Tensor input = request.get_input_tensor();
    ov::Shape shape{1, 3, size_t(model::HEIGHT), size_t(model::WIDTH)};
    if (compiled.input().get_partial_shape().is_static()) shape[0] = compiled.input().get_shape()[0];
    input.set_shape(shape);
    float* values = input.data<float>();
    for (size_t n = 0; n < shape[0]; n++)
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < model::HEIGHT; y++)
                for (int x = 0; x < model::WIDTH; x++) {
                    const bool inside = y >= top && y < top + inner_h && x >= left && x < left + inner_w;
                    const float p = inside ? inner.at(y - top, x - left, model::BGR ? 2 - c : c) : model::PAD;
                    *values++ = (p / model::DIVISOR - model::MEAN[c]) / model::STD[c];
                }
    request.infer();

    ov::Tensor output = request.get_output_tensor(0);
    ov::InferRequest decode;
    if (model::DECODE[0]) {  // a graph that makes rows of what the model gives
        decode = core.compile_model(model::DECODE, "CPU", {{"INFERENCE_PRECISION_HINT", "f32"}}).create_infer_request();
        for (size_t n = 0; n < compiled.outputs().size(); n++) decode.set_input_tensor(n, request.get_output_tensor(n));
        decode.infer();
        output = decode.get_output_tensor(0);
    }

    // the boxes
    const float* found = output.data<float>();
    const int rows = int(output.get_shape()[model::COLUMNS_FIRST ? 2 : 1]);
    const int columns = int(output.get_shape()[model::COLUMNS_FIRST ? 1 : 2]);
    auto value = [&](int row, int column) {
        return found[model::COLUMNS_FIRST ? size_t(column) * rows + row : size_t(row) * columns + column];
    };
    std::vector<Box> boxes;
    for (int row = 0; row < rows; row++) {
        int label = 0;
        for (int c = 1; c < model::CLASS_COUNT; c++)
            if (value(row, model::SCORES + c) > value(row, model::SCORES + label)) label = c;
        float score = value(row, model::SCORES + label);
        if (model::OBJECTNESS >= 0) score *= value(row, model::OBJECTNESS);
        if (!(score > model::CONFIDENCE)) continue;
        const float a = value(row, model::BOXES), b = value(row, model::BOXES + 1);
        const float c = value(row, model::BOXES + 2), d = value(row, model::BOXES + 3);
        const Box box = model::CORNERS ? Box{a, b, c, d, score, label}
                                       : Box{a - c / 2, b - d / 2, a + c / 2, b + d / 2, score, label};
        if (box.x2 > box.x1 && box.y2 > box.y1) boxes.push_back(box);
    }
    std::stable_sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
    std::vector<Box> kept;
    for (const Box& box : boxes) {
        if (int(kept.size()) == model::MAX_DETECTIONS) break;
        const bool falls = std::any_of(kept.begin(), kept.end(), [&](const Box& better) {
            return better.label == box.label && overlap(better, box) > model::IOU;
        });
        if (!falls) kept.push_back(box);
    }
    const float scale_x = float(inner_w) / image.width, scale_y = float(inner_h) / image.height;
    for (const Box& box : kept)
        std::printf("%s\t%.5f\t%.2f\t%.2f\t%.2f\t%.2f\n", model::CLASSES[box.label], box.score,
                    std::clamp((box.x1 - left) / scale_x, 0.f, float(image.width)),
                    std::clamp((box.y1 - top) / scale_y, 0.f, float(image.height)),
                    std::clamp((box.x2 - left) / scale_x, 0.f, float(image.width)),
                    std::clamp((box.y2 - top) / scale_y, 0.f, float(image.height)));
}
