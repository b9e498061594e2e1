// What sums over rows: normalisation, softmax, cross entropy; rows that fill no, some and whole vectors.
#include "digest.hpp"

#include <memory>

#include "lepton/cross_entropy.hpp"
#include "lepton/normalisation.hpp"
#include "lepton/softmax.hpp"

using namespace lepton;
using digest::make_values;
using digest::show;

namespace {

constexpr std::size_t rows = 131;

void show_layer_norm(std::size_t features, const std::string& suffix) {
  const auto x = make_values(rows * features, 1), dy = make_values(rows * features, 2);
  const auto weight = make_values(features, 3), bias = make_values(features, 4);
  std::vector<float> y(x.size()), mean(rows), rstd(rows), dx(x.size()), dweight(features), dbias(features);
  layer_norm(x.data(), weight.data(), bias.data(), y.data(), mean.data(), rstd.data(), rows, features, 1e-5f);
  show("layer_norm" + suffix, y);
  show("layer_norm mean" + suffix, mean);
  show("layer_norm rstd" + suffix, rstd);
  layer_norm(x.data(), weight.data(), nullptr, y.data(), mean.data(), rstd.data(), rows, features, 1e-5f);
  show("layer_norm without bias" + suffix, y);
  layer_norm_backward(dy.data(), x.data(), weight.data(), mean.data(), rstd.data(), dx.data(), dweight.data(),
                      dbias.data(), rows, features);
  show("layer_norm_backward x" + suffix, dx);
  show("layer_norm_backward weight" + suffix, dweight);
  show("layer_norm_backward bias" + suffix, dbias);
}

void show_rms_norm(std::size_t features, const std::string& suffix) {
  const auto x = make_values(rows * features, 5), dy = make_values(rows * features, 6),
             weight = make_values(features, 7);
  std::vector<float> y(x.size()), rstd(rows), dx(x.size()), dweight(features);
  rms_norm(x.data(), weight.data(), y.data(), rstd.data(), rows, features, 1e-6f);
  show("rms_norm" + suffix, y);
  show("rms_norm rstd" + suffix, rstd);
  rms_norm_backward(dy.data(), x.data(), weight.data(), rstd.data(), dx.data(), dweight.data(), rows, features);
  show("rms_norm_backward x" + suffix, dx);
  show("rms_norm_backward weight" + suffix, dweight);
}

void show_softmax(std::size_t keys, const std::string& suffix) {
  const ScoreShape causal{2, 3, 5, keys, 2}, whole{2, 3, 5, keys, not_causal};
  const auto mask = std::make_unique<bool[]>(2 * keys);
  const auto drawn = digest::make_integers(2 * keys, 3, 8);
  for (std::size_t i = 0; i < drawn.size(); ++i) mask[i] = drawn[i] != 0;
  for (const ScoreShape& shape : {causal, whole}) {
    const std::string kind = (shape.first_query == not_causal ? " of all" : " causal") + suffix;
    for (const bool* key_mask : {static_cast<const bool*>(nullptr), static_cast<const bool*>(mask.get())}) {
      auto p = make_values(2 * 3 * 5 * keys, 9), dp = make_values(p.size(), 10);
      softmax(p.data(), key_mask, shape, 0.125f);
      show("softmax" + kind, p);
      softmax_backward(dp.data(), p.data(), shape, 0.125f);
      show("softmax_backward" + kind, dp);
    }
  }
}

void show_cross_entropy(std::size_t classes, const std::string& suffix) {
  const auto logits = make_values(rows * classes, 11);
  auto labels = digest::make_integers(rows, classes, 12);
  for (std::size_t i = 3; i < rows; i += 10) labels[i] = kIgnoredLabel;
  auto weights = make_values(classes, 13);
  for (float& weight : weights) weight = std::abs(weight);
  std::vector<float> dlogits(logits.size());
  for (const float* class_weights : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
    const std::string kind = (class_weights == nullptr ? "" : " with weights") + suffix;
    const CrossEntropySums sums =
        softmax_cross_entropy(logits.data(), labels.data(), rows, classes, class_weights, 0.1, 0.25, dlogits.data());
    show("softmax_cross_entropy" + kind, dlogits);
    show("softmax_cross_entropy loss" + kind, &sums.loss, sizeof sums.loss);
    show("softmax_cross_entropy weight" + kind, &sums.weight, sizeof sums.weight);
    const std::int64_t counts[] = {sums.num_correct, sums.num_counted};
    show("softmax_cross_entropy counts" + kind, counts, sizeof counts);
  }
}

}  // namespace

int main() {
  for (const std::size_t length : {1, 3, 16, 37, 259}) {
    const std::string suffix = " of " + std::to_string(length);
    show_layer_norm(length, suffix);
    show_rms_norm(length, suffix);
    show_softmax(length, suffix);
    show_cross_entropy(length, suffix);
  }
}
