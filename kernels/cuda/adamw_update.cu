#include "lepton/update_math.hpp"

// See lepton/update.hpp; the scalars are the fields of AdamwScalars in their order.
extern "C" __global__ void adamw_update(float* __restrict__ values, const float* __restrict__ grads,
                                        float* __restrict__ m, float* __restrict__ v, long long n, float grad_scale,
                                        float decay, float beta1, float one_minus_beta1, float beta2,
                                        float one_minus_beta2, float inv_sqrt_bias2, float step_size, float epsilon) {
  const lepton::AdamwScalars scalars{grad_scale,      decay,          beta1,     one_minus_beta1, beta2,
                                     one_minus_beta2, inv_sqrt_bias2, step_size, epsilon};
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    float value = values[i];
    float m_i = m[i];
    float v_i = v[i];
    lepton::adamw_element(value, grads[i], m_i, v_i, scalars);
    values[i] = value;
    m[i] = m_i;
    v[i] = v_i;
  }
}
