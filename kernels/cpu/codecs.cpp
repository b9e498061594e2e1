#include "lepton/codec.hpp"

#include "lepton/codec_table.hpp"

#include <limits>
#include <stdexcept>
#include <string>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian; this CPU is not");
static_assert(std::numeric_limits<float>::is_iec559, "payloads hold IEEE 754 numbers");

namespace lepton {
namespace {

const CodecTable& table(Codec codec) {
  switch (codec) {
    case Codec::exact:
      return kExactCodec;
    case Codec::bf16:
      return kBf16Codec;
    case Codec::int8:
      return kInt8Codec;
    case Codec::fp16:
      return kFp16Codec;
    case Codec::int4:
      return kInt4Codec;
    case Codec::sign1:
      return kSign1Codec;
    case Codec::topk:
      throw std::invalid_argument("codec 6 (topk) has payloads of no fixed length: use the functions topk_*");
  }
  throw std::invalid_argument(
      "expected codec 0 (exact), 1 (bf16), 2 (int8), 3 (fp16), 4 (int4), 5 (sign1) or 6 (topk), "
      "received " +
      std::to_string(static_cast<int>(codec)));
}

}  // namespace

std::size_t block_values(Codec codec) { return codec == Codec::topk ? 1 : table(codec).block; }

std::size_t encoded_nbytes(Codec codec, std::size_t n) { return table(codec).encoded_nbytes(n); }

void encode(Codec codec, const float* x, std::size_t n, std::byte* out) { table(codec).encode(x, n, out); }

void decode(Codec codec, const std::byte* payload, std::size_t n, float* out) { table(codec).decode(payload, n, out); }

void decode_add(Codec codec, const std::byte* payload, std::size_t n, float* out) {
  table(codec).decode_add(payload, n, out);
}

void encode_with_feedback(Codec codec, const float* g, float* residual, std::size_t n, std::byte* out) {
  table(codec).encode_with_feedback(g, residual, n, out);
}

bool has_stochastic(Codec codec) { return table(codec).encode_stochastic != nullptr; }

void encode_stochastic(Codec codec, const float* x, std::size_t n, std::byte* out, const StochasticKey& key,
                       std::uint64_t first_element) {
  if (!has_stochastic(codec)) {
    throw std::invalid_argument("codec " + std::to_string(static_cast<int>(codec)) +
                                " has no stochastic rounding; int8 (2) and int4 (4) have");
  }
  if (first_element % 4 != 0) {
    throw std::invalid_argument("expected a first element that is a multiple of 4, received " +
                                std::to_string(first_element));
  }
  table(codec).encode_stochastic(x, n, out, key, first_element);
}

}  // namespace lepton
