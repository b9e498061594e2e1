// Gradient codecs: fp32 values to and from the bytes sent between ranks. The bytes are specified in
// docs/wire_format.md. All functions are thread-safe, allocate nothing and give the same bytes on every CPU.
#pragma once

#include <cstddef>

namespace lepton {

// The numbers are part of the wire format.
enum class Codec : int { exact = 0, bf16 = 1, int8 = 2 };

// Values that share one scale, so that a payload may be cut only at multiples of it: 1, 1, 256.
std::size_t block_values(Codec codec);

// Payload bytes of n values: exact 4n, bf16 2n, int8 4*ceil(n/256) + n.
std::size_t encoded_nbytes(Codec codec, std::size_t n);

// Writes encoded_nbytes(codec, n) bytes to out. The payload may have any alignment and must not overlap x.
void encode(Codec codec, const float* x, std::size_t n, std::byte* out);

// out[i] = value i of the payload.
void decode(Codec codec, const std::byte* payload, std::size_t n, float* out);

// out[i] += value i of the payload, one fp32 addition each.
void decode_add(Codec codec, const std::byte* payload, std::size_t n, float* out);

}  // namespace lepton
