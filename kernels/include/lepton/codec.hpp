// Gradient codecs: fp32 values to and from the bytes sent between ranks. The bytes are specified in
// docs/wire_format.md. All functions are thread-safe, allocate nothing and give the same bytes on every CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// The numbers are part of the wire format.
// topk has payloads of its own length, see payload.hpp and topk.hpp: the functions below that write or read payloads
// refuse it.
enum class Codec : int { exact = 0, bf16 = 1, int8 = 2, fp16 = 3, int4 = 4, sign1 = 5, topk = 6 };

// The longest block of any codec; every block length divides it.
constexpr std::size_t kMaxBlock = 1024;

// Values that share one scale, so that a payload may be cut only at multiples of it: exact, bf16 and fp16 1, int8 256,
// int4 64, sign1 1024, topk 1.
std::size_t block_values(Codec codec);

// Payload bytes of n values: exact 4n, bf16 and fp16 2n, int8 4 ceil(n/256) + n,
// int4 2 ceil(n/64) + 32 floor(n/64) + min(n mod 64, 32), sign1 4 ceil(n/1024) + ceil(n/8).
std::size_t encoded_nbytes(Codec codec, std::size_t n);

// Writes encoded_nbytes(codec, n) bytes to out. The payload may have any alignment and must not overlap x.
void encode(Codec codec, const float* x, std::size_t n, std::byte* out);

// out[i] = value i of the payload.
void decode(Codec codec, const std::byte* payload, std::size_t n, float* out);

// out[i] += value i of the payload, one fp32 addition each.
void decode_add(Codec codec, const std::byte* payload, std::size_t n, float* out);

// Error feedback of Seide et al., "1-bit stochastic gradient descent", Interspeech 2014: with x = g + residual, writes
// the payload of x and sets residual = x - (what the payload decodes to), in one pass over memory. The residual of a
// block with a NaN or an infinity in x stays as it was, and so does that of a value whose new residual would not be
// finite (it was rounded to infinity). g may be null: zeros. g and residual must not overlap.
void encode_with_feedback(Codec codec, const float* g, float* residual, std::size_t n, std::byte* out);

// Which random numbers a stochastic encoding takes: Philox with the key `seed` and the counter (element / 4, step, rank
// and phase), word element % 4.
struct StochasticKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t rank = 0;   // below 2^24
  std::uint32_t phase = 0;  // below 2^8
};

// True for int8 and int4.
bool has_stochastic(Codec codec);

// As encode, but each code is rounded up or down at random, so that the mean of the decoded values is x.
// first_element is the global number of x[0], a multiple of 4; the bytes of a value do not depend on how a tensor is
// cut at blocks.
void encode_stochastic(Codec codec, const float* x, std::size_t n, std::byte* out, const StochasticKey& key,
                       std::uint64_t first_element);

}  // namespace lepton
