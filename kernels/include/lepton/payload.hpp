// Payloads of any codec, also of topk, whose payloads are as long as their values make them. docs/wire_format.md
// specifies the bytes. All functions are thread-safe and give the same bytes on every CPU.
#pragma once

#include <cstddef>

#include "lepton/codec.hpp"

namespace lepton {

// Whether the length of a payload follows from the number of values.
bool has_fixed_nbytes(Codec codec);

// The most bytes that a payload of n values takes; none for n = 0.
std::size_t max_payload_nbytes(Codec codec, std::size_t n);

// Writes the payload of x, or with a residual of x + residual, which then becomes what the payload leaves out, and
// returns its bytes. share: of the values that topk sends. out has max_payload_nbytes(codec, n) bytes.
std::size_t write_payload(Codec codec, double share, const float* x, float* residual, std::size_t n, std::byte* out);

// out[i] = value i of a payload of n values. Throws std::invalid_argument where a topk payload is not one.
void read_payload(Codec codec, const std::byte* payload, std::size_t nbytes, std::size_t n, float* out);

// out[i] += value i of the payload, one fp32 addition each; none where topk sent no value.
void add_payload(Codec codec, const std::byte* payload, std::size_t nbytes, std::size_t n, float* out);

}  // namespace lepton
