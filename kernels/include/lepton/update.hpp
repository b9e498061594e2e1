// Optimizer updates of contiguous fp32 slices, in place, in one pass over memory, and the sum behind gradient norms.
// All functions are thread-safe, allocate nothing and give the same bits on every CPU. The slices must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// g = grad_scale * grad + weight_decay * value; m = momentum * m + g; value -= lr * m.
// Without a momentum buffer (null): value -= lr * g. PyTorch's convention, no dampening.
void sgd_update(float* values, const float* grads, float* momentum_buffer, std::size_t n, double lr, double momentum,
                double weight_decay, double grad_scale);

// AdamW with decoupled weight decay and bias correction, see adamw_element; step counts from 1.
void adamw_update(float* values, const float* grads, float* m, float* v, std::size_t n, double lr, double beta1,
                  double beta2, double epsilon, double weight_decay, double grad_scale, std::int64_t step);

// Moves m and v on as AdamW does and replaces grads by the direction of LAMB's step, see lamb_element; step counts
// from 1.
void lamb_direction(const float* values, float* grads, float* m, float* v, std::size_t n, double beta1, double beta2,
                    double epsilon, double weight_decay, double grad_scale, std::int64_t step);

// The two halves of 1-bit Adam after its warm-up, see momentum_share_element (share = beta1 / num_ranks) and
// frozen_adam_element; v stood still after frozen_step.
void momentum_share(float* grads, const float* m, std::size_t n, double beta1, int num_ranks);
void frozen_adam_update(float* values, const float* sums, float* m, const float* v, std::size_t n, double lr,
                        double beta1, double beta2, double epsilon, double weight_decay, double grad_scale,
                        std::int64_t step, std::int64_t frozen_step);

// Sum of squares in double precision in a fixed order: element i goes to lane i % 16, each lane sums in order, and
// the lanes are then added pairwise (8, 4, 2, 1). A square of an fp32 is exact in double.
double sum_of_squares(const float* x, std::size_t n);

}  // namespace lepton
