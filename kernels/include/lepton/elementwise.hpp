// Activations of fp32 arrays, one pass each. All functions are thread-safe, allocate nothing and give the same bits on
// every CPU. Outputs must not overlap inputs.
#pragma once

#include <cstddef>

namespace lepton {

// Hendrycks, Gimpel, "Gaussian error linear units", 2016: y = x Phi(x); `approximate` takes the paper's tanh form,
// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. slope = dy/dx, or null.
void gelu(const float* x, float* y, float* slope, std::size_t n, bool approximate);

// y = x / (1 + exp(-x)). slope = dy/dx, or null.
void silu(const float* x, float* y, float* slope, std::size_t n);

// Shazeer, "GLU variants improve transformer", 2020: y = silu(gate) up.
void swiglu(const float* gate, const float* up, float* y, std::size_t n);
// Also makes y again, which the weight gradient of the next product needs.
void swiglu_backward(const float* dy, const float* gate, const float* up, float* dgate, float* dup, float* y,
                     std::size_t n);

// Rotary position embedding of Su et al., "RoFormer", 2021, on halves: for i < half, (x[i], x[i + half]) turns by the
// angle of (position, i) times `sign`. x and y [batch, positions, heads, 2 half], cosines and sines [positions, half].
void rotary(const float* x, const float* cosines, const float* sines, float sign, float* y, std::size_t batch,
            std::size_t positions, std::size_t heads, std::size_t half);

}  // namespace lepton
