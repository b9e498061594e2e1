// Arithmetic of the optimizer updates for one element, shared by C++ and CUDA. Every operation is one IEEE fp32
// operation in the order written (compile without FMA contraction), so C++, CUDA and NumPy agree bit for bit.
#pragma once

#include "lepton/device.hpp"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace lepton {

LEPTON_HOST_DEVICE inline float sgd_gradient(float value, float grad, float weight_decay, float grad_scale) {
  return grad * grad_scale + weight_decay * value;
}

// The hyperparameters of one step, derived in double precision and then rounded once.
struct AdamwScalars {
  float grad_scale;
  float decay;  // 1 - lr * weight_decay
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float inv_sqrt_bias2;  // 1 / sqrt(1 - beta2^step)
  float step_size;       // lr / (1 - beta1^step)
  float epsilon;
};

// Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2, with the bias corrections
// folded into the step size and the denominator.
LEPTON_HOST_DEVICE inline void adamw_element(float& value, float grad, float& m, float& v, const AdamwScalars& s) {
  const float g = grad * s.grad_scale;
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * (g * g);
#if defined(__CUDACC__)
  const float root = sqrtf(v);
#else
  const float root = std::sqrt(v);
#endif
  const float denominator = root * s.inv_sqrt_bias2 + s.epsilon;
  value = value * s.decay - s.step_size * (m / denominator);
}

// You et al., "Large batch optimization for deep learning", ICLR 2020, algorithm 2: the direction of the step, whose
// length the norms of the whole parameter decide. The fields of AdamwScalars that it has not are as there.
struct LambScalars {
  float grad_scale;
  float weight_decay;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float inv_bias1;  // 1 / (1 - beta1^step)
  float inv_sqrt_bias2;
  float epsilon;
};

LEPTON_HOST_DEVICE inline float lamb_element(float value, float grad, float& m, float& v, const LambScalars& s) {
  const float g = grad * s.grad_scale;
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * (g * g);
#if defined(__CUDACC__)
  const float root = sqrtf(v);
#else
  const float root = std::sqrt(v);
#endif
  return (m * s.inv_bias1) / (root * s.inv_sqrt_bias2 + s.epsilon) + s.weight_decay * value;
}

// Tang et al., "1-bit Adam", ICML 2021, algorithm 1 after its warm-up: what a rank adds to the sum of momenta, where
// share is beta1 / ranks.
LEPTON_HOST_DEVICE inline float momentum_share_element(float grad, float m, float one_minus_beta1, float share) {
  return one_minus_beta1 * grad + share * m;
}

struct FrozenAdamScalars {
  float grad_scale;
  float decay;  // 1 - lr * weight_decay
  float beta1;
  float inv_sqrt_bias2;  // of the last step that changed v
  float step_size;       // lr / (1 - beta1^step)
  float epsilon;
};

// The same algorithm's step: the sum is beta1 * m + (1 - beta1) * gradient, and v stays as it is. Where v is 0 there
// was no gradient in the whole warm-up, and what a codec makes of it is no reason to move.
LEPTON_HOST_DEVICE inline void frozen_adam_element(float& value, float sum, float& m, float v,
                                                   const FrozenAdamScalars& s) {
  const float carried = s.beta1 * m;
  m = carried + s.grad_scale * (sum - carried);
#if defined(__CUDACC__)
  const float root = sqrtf(v);
#else
  const float root = std::sqrt(v);
#endif
  const float direction = m / (root * s.inv_sqrt_bias2 + s.epsilon);
  value = value * s.decay - s.step_size * (v > 0.0f ? direction : 0.0f);
}

}  // namespace lepton
