#include "lepton/elementwise.hpp"

#include "lepton/elementary.hpp"
#include "lepton/simd.hpp"

namespace lepton {
namespace {

constexpr float kTwiceRootTwoOverPi = 1.59576912160573071f;
constexpr float kCubic = 0.044715f;

// (1 + tanh(u)) / 2 is the sigmoid of 2u, which cancels nowhere.
inline SigmoidFp32 gelu_gate(float x) { return sigmoid_fp32(kTwiceRootTwoOverPi * (x + kCubic * (x * x * x))); }

LEPTON_SIMD void gelu_exact(const float* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * normal_fp32(x[i]).below;
}

LEPTON_SIMD void gelu_tanh(const float* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * gelu_gate(x[i]).value;
}

LEPTON_SIMD void gelu_exact_and_slope(const float* __restrict x, float* __restrict y, float* __restrict slope,
                                      std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const NormalFp32 normal = normal_fp32(x[i]);
    y[i] = x[i] * normal.below;
    slope[i] = normal.below + x[i] * normal.density;
  }
}

LEPTON_SIMD void gelu_tanh_and_slope(const float* __restrict x, float* __restrict y, float* __restrict slope,
                                     std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const SigmoidFp32 gate = gelu_gate(x[i]);
    const float inner = kTwiceRootTwoOverPi * (1.0f + 3.0f * kCubic * (x[i] * x[i]));
    y[i] = x[i] * gate.value;
    slope[i] = gate.value + x[i] * (gate.value * gate.rest) * inner;
  }
}

LEPTON_SIMD void silu_forward(const float* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * sigmoid_fp32(x[i]).value;
}

LEPTON_SIMD void silu_and_slope(const float* __restrict x, float* __restrict y, float* __restrict slope,
                                std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const SigmoidFp32 s = sigmoid_fp32(x[i]);
    y[i] = x[i] * s.value;
    slope[i] = s.value + x[i] * (s.value * s.rest);
  }
}

LEPTON_SIMD void swiglu_forward(const float* __restrict gate, const float* __restrict up, float* __restrict y,
                                std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = gate[i] * sigmoid_fp32(gate[i]).value * up[i];
}

LEPTON_SIMD void swiglu_gradient(const float* __restrict dy, const float* __restrict gate, const float* __restrict up,
                                 float* __restrict dgate, float* __restrict dup, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const SigmoidFp32 s = sigmoid_fp32(gate[i]);
    const float activated = gate[i] * s.value;
    y[i] = activated * up[i];
    dup[i] = dy[i] * activated;
    dgate[i] = dy[i] * up[i] * (s.value + activated * s.rest);
  }
}

LEPTON_SIMD void rotate_heads(const float* __restrict x, const float* __restrict cosines, const float* __restrict sines,
                              float sign, float* __restrict y, std::size_t batch, std::size_t positions,
                              std::size_t heads, std::size_t half) {
  for (std::size_t row = 0; row < batch * positions; ++row) {
    const float* c = cosines + row % positions * half;
    const float* s = sines + row % positions * half;
    for (std::size_t head = 0; head < heads; ++head) {
      const float* from = x + (row * heads + head) * 2 * half;
      float* to = y + (row * heads + head) * 2 * half;
      for (std::size_t i = 0; i < half; ++i) to[i] = from[i] * c[i] - from[i + half] * (sign * s[i]);
      for (std::size_t i = 0; i < half; ++i) to[i + half] = from[i + half] * c[i] + from[i] * (sign * s[i]);
    }
  }
}

}  // namespace

void gelu(const float* x, float* y, float* slope, std::size_t n, bool approximate) {
  if (slope == nullptr) {
    approximate ? gelu_tanh(x, y, n) : gelu_exact(x, y, n);
  } else {
    approximate ? gelu_tanh_and_slope(x, y, slope, n) : gelu_exact_and_slope(x, y, slope, n);
  }
}

void silu(const float* x, float* y, float* slope, std::size_t n) {
  slope == nullptr ? silu_forward(x, y, n) : silu_and_slope(x, y, slope, n);
}

void swiglu(const float* gate, const float* up, float* y, std::size_t n) { swiglu_forward(gate, up, y, n); }

void swiglu_backward(const float* dy, const float* gate, const float* up, float* dgate, float* dup, float* y,
                     std::size_t n) {
  swiglu_gradient(dy, gate, up, dgate, dup, y, n);
}

void rotary(const float* x, const float* cosines, const float* sines, float sign, float* y, std::size_t batch,
            std::size_t positions, std::size_t heads, std::size_t half) {
  rotate_heads(x, cosines, sines, sign, y, batch, positions, heads, half);
}

}  // namespace lepton
