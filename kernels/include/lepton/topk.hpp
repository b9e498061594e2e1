// Sparse payloads: the values of largest magnitude, each as a 16-bit index within its block of 65536 values and a
// binary16 value in units of a power of two of the block. The bytes are specified in docs/wire_format.md. All functions
// are thread-safe and give the same bytes on every CPU.
#pragma once

#include <cstddef>

namespace lepton {

constexpr std::size_t kTopkBlock = 65536;

// The most bytes that a payload of n values takes: that of a dense one, 4 + 4 ceil(n / 65536) + 2n, or of an empty
// sparse one, 4 + 8 ceil(n / 65536).
std::size_t topk_max_nbytes(std::size_t n);

// The largest threshold of a grid 2^-7 fine (relative) that at least share * n of the finite values reach in magnitude;
// never zero, so that zeros are not sent. Made to be given a sample.
float topk_threshold(const float* x, std::size_t n, double share);

// A threshold that about share * n of the values of x, or with a residual of x + residual, reach in magnitude, from a
// sample of at most 16384 of them; x may be null for zeros. It depends on the values alone, not on calls before.
float topk_sampled_threshold(const float* x, const float* residual, std::size_t n, double share);

struct TopkResult {
  std::size_t nbytes;      // of the payload
  std::size_t num_values;  // that reach the threshold
};

// Writes the payload of the values that reach the threshold (positive, not NaN) in magnitude; of all values if that
// takes fewer bytes. out has topk_max_nbytes(n) bytes.
TopkResult topk_encode(const float* x, std::size_t n, float threshold, std::byte* out);

// With x = g + residual, writes the payload of x and sets residual = x - (what the payload decodes to). A block with a
// NaN or an infinity in x leaves its residual as it was. g may be null: zeros.
TopkResult topk_encode_with_feedback(const float* g, float* residual, std::size_t n, float threshold, std::byte* out);

// out[i] = value i of the payload; zero where none was sent. Throws std::invalid_argument where the payload is not one
// of n values.
void topk_decode(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out);

// out[i] += value i of the payload, where one was sent.
void topk_decode_add(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out);

}  // namespace lepton
