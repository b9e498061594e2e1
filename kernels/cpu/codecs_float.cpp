// exact, bf16 and fp16: each value by itself, in 4 or 2 bytes.
#include "lepton/bf16.hpp"
#include "lepton/codec_blocks.hpp"
#include "lepton/codec_table.hpp"
#include "lepton/fp16.hpp"
#include "lepton/simd.hpp"

namespace lepton {
namespace {

struct Exact {
  using Code = std::uint32_t;
  LEPTON_INLINE static Code code(unsigned int bits) { return bits; }
  LEPTON_INLINE static unsigned int bits(Code code) { return code; }
};

struct Bf16 {
  using Code = std::uint16_t;
  LEPTON_INLINE static Code code(unsigned int bits) { return bf16_bits(bits); }
  LEPTON_INLINE static unsigned int bits(Code code) { return fp32_bits(code); }
};

struct Fp16 {
  using Code = std::uint16_t;
  LEPTON_INLINE static Code code(unsigned int bits) { return fp16_bits(bits); }
  LEPTON_INLINE static unsigned int bits(Code code) { return fp16_to_fp32_bits(code); }
};

template <class Form>
std::size_t nbytes_of(std::size_t n) {
  return sizeof(typename Form::Code) * n;
}

template <class Form>
LEPTON_INLINE void encode_each(const float* __restrict x, std::size_t n, std::byte* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) store(out + sizeof(typename Form::Code) * i, Form::code(bits_of(x[i])));
}

template <class Form, bool add>
LEPTON_INLINE void decode_each(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  using Code = typename Form::Code;
  for (std::size_t i = 0; i < n; ++i) put<add>(out[i], float_of(Form::bits(load<Code>(payload + sizeof(Code) * i))));
}

template <class Form, bool has_gradient>
LEPTON_INLINE void feedback_each(const float* __restrict g, float* __restrict residual, std::size_t n,
                                 std::byte* __restrict out) {
  using Code = typename Form::Code;
  for (std::size_t i = 0; i < n; ++i) {
    const float x = has_gradient ? g[i] + residual[i] : residual[i];
    const Code code = Form::code(bits_of(x));
    store(out + sizeof(Code) * i, code);
    const float rest = x - float_of(Form::bits(code));
    residual[i] = (bits_of(rest) & kMagnitudeBits) < kInfinityBits ? rest : residual[i];
  }
}

template <class Form>
LEPTON_INLINE void feedback_each(const float* g, float* residual, std::size_t n, std::byte* out) {
  if (g == nullptr) {
    feedback_each<Form, false>(nullptr, residual, n, out);
  } else {
    feedback_each<Form, true>(g, residual, n, out);
  }
}

void encode_exact(const float* x, std::size_t n, std::byte* out) {
  if (n > 0) std::memcpy(out, x, sizeof(float) * n);
}

void decode_exact(const std::byte* payload, std::size_t n, float* out) {
  if (n > 0) std::memcpy(out, payload, sizeof(float) * n);
}

LEPTON_SIMD void decode_add_exact(const std::byte* payload, std::size_t n, float* out) {
  decode_each<Exact, true>(payload, n, out);
}

LEPTON_SIMD void feedback_exact(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_each<Exact>(g, residual, n, out);
}

LEPTON_SIMD void encode_bf16(const float* x, std::size_t n, std::byte* out) { encode_each<Bf16>(x, n, out); }

LEPTON_SIMD void decode_bf16(const std::byte* payload, std::size_t n, float* out) {
  decode_each<Bf16, false>(payload, n, out);
}

LEPTON_SIMD void decode_add_bf16(const std::byte* payload, std::size_t n, float* out) {
  decode_each<Bf16, true>(payload, n, out);
}

LEPTON_SIMD void feedback_bf16(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_each<Bf16>(g, residual, n, out);
}

LEPTON_SIMD void encode_fp16(const float* x, std::size_t n, std::byte* out) { encode_each<Fp16>(x, n, out); }

LEPTON_SIMD void decode_fp16(const std::byte* payload, std::size_t n, float* out) {
  decode_each<Fp16, false>(payload, n, out);
}

LEPTON_SIMD void decode_add_fp16(const std::byte* payload, std::size_t n, float* out) {
  decode_each<Fp16, true>(payload, n, out);
}

LEPTON_SIMD void feedback_fp16(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_each<Fp16>(g, residual, n, out);
}

}  // namespace

const CodecTable kExactCodec{1,      nbytes_of<Exact>, encode_exact, decode_exact, decode_add_exact, feedback_exact,
                             nullptr};
const CodecTable kBf16Codec{1, nbytes_of<Bf16>, encode_bf16, decode_bf16, decode_add_bf16, feedback_bf16, nullptr};
const CodecTable kFp16Codec{1, nbytes_of<Fp16>, encode_fp16, decode_fp16, decode_add_fp16, feedback_fp16, nullptr};

}  // namespace lepton
