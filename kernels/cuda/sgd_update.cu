#include "lepton/update_math.hpp"

// See lepton/update.hpp; momentum_buffer may be null.
extern "C" __global__ void sgd_update(float* __restrict__ values, const float* __restrict__ grads,
                                      float* __restrict__ momentum_buffer, long long n, float lr, float momentum,
                                      float weight_decay, float grad_scale) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    float step = lepton::sgd_gradient(values[i], grads[i], weight_decay, grad_scale);
    if (momentum_buffer != nullptr) {
      step = momentum * momentum_buffer[i] + step;
      momentum_buffer[i] = step;
    }
    values[i] -= lr * step;
  }
}
