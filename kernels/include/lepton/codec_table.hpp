// What codec.hpp dispatches to: one table of functions per codec, filled in kernels/cpu/codecs_*.cpp.
#pragma once

#include "lepton/codec.hpp"

namespace lepton {

struct CodecTable {
  std::size_t block;
  std::size_t (*encoded_nbytes)(std::size_t n);
  void (*encode)(const float* x, std::size_t n, std::byte* out);
  void (*decode)(const std::byte* payload, std::size_t n, float* out);
  void (*decode_add)(const std::byte* payload, std::size_t n, float* out);
  void (*encode_with_feedback)(const float* g, float* residual, std::size_t n, std::byte* out);
  // Null where a codec has no random rounding.
  void (*encode_stochastic)(const float* x, std::size_t n, std::byte* out, const StochasticKey& key,
                            std::uint64_t first_element);
};

extern const CodecTable kExactCodec;
extern const CodecTable kBf16Codec;
extern const CodecTable kFp16Codec;
extern const CodecTable kInt8Codec;
extern const CodecTable kInt4Codec;
extern const CodecTable kSign1Codec;

}  // namespace lepton
