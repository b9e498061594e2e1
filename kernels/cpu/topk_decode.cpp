#include "lepton/topk_payload.hpp"

#include <cmath>
#include <stdexcept>

namespace lepton {
namespace {

[[noreturn]] void throw_damaged() { throw std::invalid_argument("not a top-k payload of this many values"); }

template <bool add>
void take_dense(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  if (nbytes != topk_dense_nbytes(n)) throw_damaged();
  const std::byte* scales = payload + kTopkLayoutNbytes;
  const std::byte* codes = scales + 4 * topk_num_blocks(n);
  for (std::size_t block = 0; block < topk_num_blocks(n); ++block) {
    const auto scale = load<float>(scales + 4 * block);
    const std::size_t start = block * kTopkBlock;
    for (std::size_t i = start; i < start + topk_block_length(block, n); ++i) {
      put<add>(out[i], topk_value(load<std::uint16_t>(codes + 2 * i), scale));
    }
  }
}

// One block of a sparse payload; returns where the next one begins.
template <bool add>
const std::byte* take_sparse_block(const std::byte* from, const std::byte* end, std::size_t length, float* out) {
  if (static_cast<std::size_t>(end - from) < kTopkBlockHeader) throw_damaged();
  const std::size_t count = load<std::uint32_t>(from);
  const auto scale = load<float>(from + 4);
  const std::byte* indices = from + kTopkBlockHeader;
  if (count > length || static_cast<std::size_t>(end - indices) < kTopkPairNbytes * count) throw_damaged();
  const std::byte* values = indices + 2 * count;
  const bool damaged = std::isnan(scale);
  if (!add || damaged) {
    for (std::size_t i = 0; i < length; ++i) put<add>(out[i], damaged ? scale : 0.0f);
  }
  for (std::size_t k = 0; k < count; ++k) {
    const std::size_t i = load<std::uint16_t>(indices + 2 * k);
    if (i >= length) throw_damaged();
    put<add>(out[i], topk_value(load<std::uint16_t>(values + 2 * k), scale));
  }
  return values + 2 * count;
}

template <bool add>
void take(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  if (nbytes < kTopkLayoutNbytes) throw_damaged();
  const auto layout = load<std::uint32_t>(payload);
  if (layout == static_cast<std::uint32_t>(TopkLayout::dense)) return take_dense<add>(payload, nbytes, n, out);
  if (layout != static_cast<std::uint32_t>(TopkLayout::sparse)) throw_damaged();
  const std::byte* from = payload + kTopkLayoutNbytes;
  const std::byte* const end = payload + nbytes;
  for (std::size_t block = 0; block < topk_num_blocks(n); ++block) {
    from = take_sparse_block<add>(from, end, topk_block_length(block, n), out + block * kTopkBlock);
  }
  if (from != end) throw_damaged();
}

}  // namespace

void topk_decode(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  take<false>(payload, nbytes, n, out);
}

void topk_decode_add(const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  take<true>(payload, nbytes, n, out);
}

}  // namespace lepton
