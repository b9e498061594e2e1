#include "lepton/payload.hpp"

#include "lepton/topk.hpp"

namespace lepton {

bool has_fixed_nbytes(Codec codec) { return codec != Codec::topk; }

std::size_t max_payload_nbytes(Codec codec, std::size_t n) {
  if (n == 0) return 0;
  return codec == Codec::topk ? topk_max_nbytes(n) : encoded_nbytes(codec, n);
}

std::size_t write_payload(Codec codec, double share, const float* x, float* residual, std::size_t n, std::byte* out) {
  if (n == 0) return 0;
  if (codec == Codec::topk) {
    const float threshold = topk_sampled_threshold(x, residual, n, share);
    if (residual == nullptr) return topk_encode(x, n, threshold, out).nbytes;
    return topk_encode_with_feedback(x, residual, n, threshold, out).nbytes;
  }
  if (residual != nullptr)
    encode_with_feedback(codec, x, residual, n, out);
  else
    encode(codec, x, n, out);
  return encoded_nbytes(codec, n);
}

void read_payload(Codec codec, const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  if (n == 0) return;
  if (codec == Codec::topk)
    topk_decode(payload, nbytes, n, out);
  else
    decode(codec, payload, n, out);
}

void add_payload(Codec codec, const std::byte* payload, std::size_t nbytes, std::size_t n, float* out) {
  if (n == 0) return;
  if (codec == Codec::topk)
    topk_decode_add(payload, nbytes, n, out);
  else
    decode_add(codec, payload, n, out);
}

}  // namespace lepton
