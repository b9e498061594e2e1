// Rounding of fp32 arrays to bfloat16, in one pass over memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// out[i] = the nearest bfloat16 value of x[i], ties to even, as fp32; a NaN stays as it is. out may be x.
void round_to_bf16(const float* x, std::size_t n, float* out);

// out[i] = the upper half of that value; a NaN becomes quiet.
void convert_to_bf16(const float* x, std::size_t n, std::uint16_t* out);

}  // namespace lepton
