#include "lepton/topk.hpp"

#include "lepton/simd.hpp"
#include "lepton/topk_payload.hpp"

#include <cmath>
#include <stdexcept>
#include <vector>

namespace lepton {
namespace {

// What a block needs to know before its bytes are written.
struct Plan {
  unsigned int largest = 0;  // magnitude bits
  std::size_t count = 0;     // values that reach the threshold
};

// Subtracts what was sent, unless it was rounded to infinity.
LEPTON_INLINE void take_off(float& residual, float value) {
  const float rest = residual - value;
  residual = (bits_of(rest) & kMagnitudeBits) < kInfinityBits ? rest : residual;
}

// Where x comes from: an array, gradient and residual, or a residual alone. `at` gives a value, `keep` stores what
// becomes of it, and `sent` takes off what the payload holds of it.
struct Values {
  const float* x;
  LEPTON_INLINE float at(std::size_t i) const { return x[i]; }
  LEPTON_INLINE void keep(std::size_t, std::size_t) const {}
  LEPTON_INLINE float kept(std::size_t i) const { return x[i]; }
  LEPTON_INLINE void sent(std::size_t, float) const {}
};

struct Feedback {
  const float* g;
  float* residual;
  LEPTON_INLINE float at(std::size_t i) const { return g[i] + residual[i]; }
  LEPTON_INLINE void keep(std::size_t start, std::size_t count) const {
    for (std::size_t i = start; i < start + count; ++i) residual[i] = at(i);
  }
  LEPTON_INLINE float kept(std::size_t i) const { return residual[i]; }
  LEPTON_INLINE void sent(std::size_t i, float value) const { take_off(residual[i], value); }
};

struct Pending {
  float* residual;
  LEPTON_INLINE float at(std::size_t i) const { return residual[i]; }
  LEPTON_INLINE void keep(std::size_t, std::size_t) const {}
  LEPTON_INLINE float kept(std::size_t i) const { return residual[i]; }
  LEPTON_INLINE void sent(std::size_t i, float value) const { take_off(residual[i], value); }
};

template <class Source>
LEPTON_INLINE Plan plan_of(const Source& source, std::size_t start, std::size_t count, std::int32_t threshold) {
  std::int32_t largest = 0;
  std::uint32_t reached = 0;
  for (std::size_t i = start; i < start + count; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(source.at(i)) & kMagnitudeBits);
    largest = magnitude > largest ? magnitude : largest;
    reached += magnitude >= threshold ? 1u : 0u;
  }
  const auto bits = static_cast<unsigned int>(largest);
  return {bits, topk_scale(bits).codes_per_unit == 0.0f ? 0 : reached};
}

// Plans all blocks and, where a block is finite, stores its sums.
template <class Source>
LEPTON_INLINE void plan_blocks(const Source& source, std::size_t n, std::int32_t threshold, Plan* plans) {
  for (std::size_t block = 0; block < topk_num_blocks(n); ++block) {
    plans[block] = plan_of(source, block * kTopkBlock, topk_block_length(block, n), threshold);
    if (plans[block].largest < kInfinityBits) source.keep(block * kTopkBlock, topk_block_length(block, n));
  }
}

LEPTON_SIMD void plan(const Values& source, std::size_t n, std::int32_t threshold, Plan* plans) {
  plan_blocks(source, n, threshold, plans);
}
LEPTON_SIMD void plan(const Feedback& source, std::size_t n, std::int32_t threshold, Plan* plans) {
  plan_blocks(source, n, threshold, plans);
}
LEPTON_SIMD void plan(const Pending& source, std::size_t n, std::int32_t threshold, Plan* plans) {
  plan_blocks(source, n, threshold, plans);
}
// Bit i says whether x[i] reaches the threshold.
LEPTON_SIMD std::uint32_t reaching_of_32(const float* x, std::int32_t threshold) {
  std::uint32_t reaching = 0;
  for (unsigned int i = 0; i < 32; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(x[i]) & kMagnitudeBits);
    reaching |= (magnitude >= threshold ? 1u : 0u) << i;
  }
  return reaching;
}

template <class Source>
std::byte* write_sparse_block(const Source& source, std::size_t start, std::size_t length, const Plan& plan,
                              std::int32_t threshold, std::byte* out) {
  const BlockScale s = topk_scale(plan.largest);
  store(out, static_cast<std::uint32_t>(plan.count));
  store(out + 4, s.scale);
  std::byte* indices = out + kTopkBlockHeader;
  std::byte* values = indices + 2 * plan.count;
  std::byte* const end = values + 2 * plan.count;
  const auto write = [&](std::size_t i) {
    const std::uint16_t code = fp16_bits(bits_of(source.kept(start + i) * s.codes_per_unit));
    store(indices, static_cast<std::uint16_t>(i));
    store(values, code);
    indices += 2;
    values += 2;
    source.sent(start + i, topk_value(code, s.scale));
  };
  if (plan.count == 0) return end;
  const std::size_t num_whole = length - length % 32;
  for (std::size_t first = 0; first < num_whole; first += 32) {
    float x[32];
    for (std::size_t i = 0; i < 32; ++i) x[i] = source.kept(start + first + i);
    for (std::uint32_t left = reaching_of_32(x, threshold); left != 0; left &= left - 1) {
      write(first + static_cast<std::size_t>(__builtin_ctz(left)));
    }
  }
  for (std::size_t i = num_whole; i < length; ++i) {
    if (static_cast<std::int32_t>(bits_of(source.kept(start + i)) & kMagnitudeBits) >= threshold) write(i);
  }
  return end;
}

template <class Source>
void write_dense(const Source& source, std::size_t n, const std::vector<Plan>& plans, std::byte* out) {
  std::byte* codes = out + 4 * plans.size();
  for (std::size_t block = 0; block < plans.size(); ++block) {
    const BlockScale s = topk_scale(plans[block].largest);
    store(out + 4 * block, s.scale);
    const std::size_t start = block * kTopkBlock;
    const std::size_t length = topk_block_length(block, n);
    if (s.codes_per_unit == 0.0f) {
      std::memset(codes + 2 * start, 0, 2 * length);
      continue;
    }
    for (std::size_t i = start; i < start + length; ++i) {
      const std::uint16_t code = fp16_bits(bits_of(source.kept(i) * s.codes_per_unit));
      store(codes + 2 * i, code);
      source.sent(i, topk_value(code, s.scale));
    }
  }
}

template <class Source>
TopkResult encode_source(const Source& source, std::size_t n, float threshold, std::byte* out) {
  if (!(threshold > 0.0f)) throw std::invalid_argument("expected a positive threshold");
  const auto bits = static_cast<std::int32_t>(bits_of(threshold));
  std::vector<Plan> plans(topk_num_blocks(n));
  plan(source, n, bits, plans.data());
  std::size_t total = 0;
  for (const Plan& p : plans) total += p.count;
  const std::size_t sparse_nbytes = kTopkLayoutNbytes + kTopkBlockHeader * plans.size() + kTopkPairNbytes * total;
  if (sparse_nbytes > topk_dense_nbytes(n) && total > 0) {
    store(out, static_cast<std::uint32_t>(TopkLayout::dense));
    write_dense(source, n, plans, out + kTopkLayoutNbytes);
    return {topk_dense_nbytes(n), total};
  }
  store(out, static_cast<std::uint32_t>(TopkLayout::sparse));
  std::byte* to = out + kTopkLayoutNbytes;
  for (std::size_t block = 0; block < plans.size(); ++block) {
    to = write_sparse_block(source, block * kTopkBlock, topk_block_length(block, n), plans[block], bits, to);
  }
  return {sparse_nbytes, total};
}

// Large enough that the share of what is sent differs from the wanted one by some percent, at 1%.
constexpr std::size_t kMostSampled = 16384;

// Odd, so that a sample meets all columns of most matrices.
std::size_t sample_stride(std::size_t n) { return n <= kMostSampled ? 1 : ((n + kMostSampled - 1) / kMostSampled) | 1; }

}  // namespace

std::size_t topk_max_nbytes(std::size_t n) {
  return std::max(topk_dense_nbytes(n), kTopkLayoutNbytes + kTopkBlockHeader * topk_num_blocks(n));
}

float topk_threshold(const float* x, std::size_t n, double share) {
  if (!(share > 0.0 && share <= 1.0)) throw std::invalid_argument("expected a share in (0, 1]");
  constexpr unsigned int kDropped = 16;  // mantissa bits below the grid
  std::vector<std::uint32_t> counts(kInfinityBits >> kDropped, 0);
  std::size_t finite = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const unsigned int magnitude = bits_of(x[i]) & kMagnitudeBits;
    if (magnitude >= kInfinityBits) continue;
    ++counts[magnitude >> kDropped];
    ++finite;
  }
  auto wanted = static_cast<std::size_t>(std::ceil(share * static_cast<double>(finite)));
  std::size_t bin = counts.size();
  for (std::size_t reached = 0; bin > 0 && reached < wanted;) reached += counts[--bin];
  return float_of(std::max(1u, static_cast<unsigned int>(bin) << kDropped));
}

float topk_sampled_threshold(const float* x, const float* residual, std::size_t n, double share) {
  const std::size_t stride = sample_stride(n);
  std::vector<float> sample((n + stride - 1) / stride);
  for (std::size_t i = 0; i < sample.size(); ++i) {
    const float value = x == nullptr ? 0.0f : x[i * stride];
    sample[i] = residual == nullptr ? value : value + residual[i * stride];
  }
  return topk_threshold(sample.data(), sample.size(), share);
}

TopkResult topk_encode(const float* x, std::size_t n, float threshold, std::byte* out) {
  return encode_source(Values{x}, n, threshold, out);
}

TopkResult topk_encode_with_feedback(const float* g, float* residual, std::size_t n, float threshold, std::byte* out) {
  if (g == nullptr) return encode_source(Pending{residual}, n, threshold, out);
  return encode_source(Feedback{g, residual}, n, threshold, out);
}

}  // namespace lepton
