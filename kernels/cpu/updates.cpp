#include "lepton/update.hpp"

#include "lepton/simd.hpp"
#include "lepton/update_math.hpp"

#include <cmath>

namespace lepton {
namespace {

constexpr std::size_t kNumLanes = 16;  // two AVX-512 or four AVX2 accumulators: enough to hide the addition's latency

LEPTON_SIMD void sgd_plain(float* __restrict values, const float* __restrict grads, std::size_t n, float lr,
                           float weight_decay, float grad_scale) {
  for (std::size_t i = 0; i < n; ++i) {
    values[i] -= lr * sgd_gradient(values[i], grads[i], weight_decay, grad_scale);
  }
}

LEPTON_SIMD void sgd_momentum(float* __restrict values, const float* __restrict grads, float* __restrict m,
                              std::size_t n, float lr, float momentum, float weight_decay, float grad_scale) {
  for (std::size_t i = 0; i < n; ++i) {
    m[i] = momentum * m[i] + sgd_gradient(values[i], grads[i], weight_decay, grad_scale);
    values[i] -= lr * m[i];
  }
}

LEPTON_SIMD void adamw(float* __restrict values, const float* __restrict grads, float* __restrict m,
                       float* __restrict v, std::size_t n, const AdamwScalars scalars) {
  for (std::size_t i = 0; i < n; ++i) {
    adamw_element(values[i], grads[i], m[i], v[i], scalars);
  }
}

LEPTON_SIMD void lamb(const float* __restrict values, float* __restrict grads, float* __restrict m, float* __restrict v,
                      std::size_t n, const LambScalars scalars) {
  for (std::size_t i = 0; i < n; ++i) {
    grads[i] = lamb_element(values[i], grads[i], m[i], v[i], scalars);
  }
}

LEPTON_SIMD void momentum_shares(float* __restrict grads, const float* __restrict m, std::size_t n,
                                 float one_minus_beta1, float share) {
  for (std::size_t i = 0; i < n; ++i) grads[i] = momentum_share_element(grads[i], m[i], one_minus_beta1, share);
}

LEPTON_SIMD void frozen_adam(float* __restrict values, const float* __restrict sums, float* __restrict m,
                             const float* __restrict v, std::size_t n, const FrozenAdamScalars scalars) {
  for (std::size_t i = 0; i < n; ++i) frozen_adam_element(values[i], sums[i], m[i], v[i], scalars);
}

LEPTON_SIMD double squares(const float* x, std::size_t n) {
  double lanes[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) {
    const double value = x[i];
    lanes[lane] += value * value;
  }
  for (std::size_t width = kNumLanes / 2; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace

void sgd_update(float* values, const float* grads, float* momentum_buffer, std::size_t n, double lr, double momentum,
                double weight_decay, double grad_scale) {
  const auto lr_f = static_cast<float>(lr);
  const auto weight_decay_f = static_cast<float>(weight_decay);
  const auto grad_scale_f = static_cast<float>(grad_scale);
  if (momentum_buffer == nullptr) {
    sgd_plain(values, grads, n, lr_f, weight_decay_f, grad_scale_f);
  } else {
    sgd_momentum(values, grads, momentum_buffer, n, lr_f, static_cast<float>(momentum), weight_decay_f, grad_scale_f);
  }
}

void adamw_update(float* values, const float* grads, float* m, float* v, std::size_t n, double lr, double beta1,
                  double beta2, double epsilon, double weight_decay, double grad_scale, std::int64_t step) {
  const double bias1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double bias2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  AdamwScalars scalars{};
  scalars.grad_scale = static_cast<float>(grad_scale);
  scalars.decay = static_cast<float>(1.0 - lr * weight_decay);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  scalars.inv_sqrt_bias2 = static_cast<float>(1.0 / std::sqrt(bias2));
  scalars.step_size = static_cast<float>(lr / bias1);
  scalars.epsilon = static_cast<float>(epsilon);
  adamw(values, grads, m, v, n, scalars);
}

void lamb_direction(const float* values, float* grads, float* m, float* v, std::size_t n, double beta1, double beta2,
                    double epsilon, double weight_decay, double grad_scale, std::int64_t step) {
  LambScalars scalars{};
  scalars.grad_scale = static_cast<float>(grad_scale);
  scalars.weight_decay = static_cast<float>(weight_decay);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  scalars.beta2 = static_cast<float>(beta2);
  scalars.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  scalars.inv_bias1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, static_cast<double>(step))));
  scalars.inv_sqrt_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))));
  scalars.epsilon = static_cast<float>(epsilon);
  lamb(values, grads, m, v, n, scalars);
}

void momentum_share(float* grads, const float* m, std::size_t n, double beta1, int num_ranks) {
  momentum_shares(grads, m, n, static_cast<float>(1.0 - beta1), static_cast<float>(beta1 / num_ranks));
}

void frozen_adam_update(float* values, const float* sums, float* m, const float* v, std::size_t n, double lr,
                        double beta1, double beta2, double epsilon, double weight_decay, double grad_scale,
                        std::int64_t step, std::int64_t frozen_step) {
  FrozenAdamScalars scalars{};
  scalars.grad_scale = static_cast<float>(grad_scale);
  scalars.decay = static_cast<float>(1.0 - lr * weight_decay);
  scalars.beta1 = static_cast<float>(beta1);
  scalars.inv_sqrt_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, static_cast<double>(frozen_step))));
  scalars.step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, static_cast<double>(step))));
  scalars.epsilon = static_cast<float>(epsilon);
  frozen_adam(values, sums, m, v, n, scalars);
}

double sum_of_squares(const float* x, std::size_t n) { return squares(x, n); }

}  // namespace lepton
