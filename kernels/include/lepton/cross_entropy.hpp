// Cross entropy of softmax probabilities and its gradient, row by row. Thread-safe; allocates nothing; the gradient has
// the same bits on every CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

constexpr std::int64_t kIgnoredLabel = -100;

struct CrossEntropySums {
  double loss = 0;               // sum of weight times loss
  double weight = 0;             // sum of the labels' weights
  std::int64_t num_correct = 0;  // labels of nonzero weight whose class has the first largest logit of the row
  std::int64_t num_counted = 0;  // labels of nonzero weight
};

// The sums over the rows of logits [num_rows, num_classes], and dlogits = factor * d loss / d logits.
// labels: classes in [0, num_classes), or kIgnoredLabel.
// class_weights: [num_classes], or null for ones. dlogits: [num_rows, num_classes], or null; must not overlap logits.
CrossEntropySums softmax_cross_entropy(const float* logits, const std::int64_t* labels, std::size_t num_rows,
                                       std::size_t num_classes, const float* class_weights, double label_smoothing,
                                       double factor, float* dlogits);

}  // namespace lepton
