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

}  // namespace lepton
